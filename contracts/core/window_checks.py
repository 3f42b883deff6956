"""What each check of a window came to: passed, failed, or not run and why."""

from collections.abc import Mapping, Sequence

from contracts.core.outcome_verdict import OutcomeFigures
from contracts.core.verdict import CheckOutcome, CheckResult, WindowKind

# The checks on labels are told one by one, as measures.
BY_MEASURE = (WindowKind.DECAYED, WindowKind.WORSE_ON_LABELS, WindowKind.INSUFFICIENT)


def window_checks(reasons: Mapping[WindowKind, Sequence[str]], not_run: Mapping[WindowKind, str],
                  outcomes: OutcomeFigures | None) -> list[CheckResult]:
    """One result for each kind of finding but those on labels, and one for each measure on labels.

    `not_run`: why a kind could not be looked for; what was found all the same counts as failed.
    """
    results = [_result(str(kind), bool(found), not_run.get(kind, ""))
               for kind, found in reasons.items() if kind not in BY_MEASURE]
    if outcomes is None:
        return results
    failed = {check.measure for check in outcomes.failed}
    results += [_result(str(measure), measure in failed, "")
                for measure in dict.fromkeys(check.measure for check in outcomes.checks)]
    return results + [_result(str(check.measure), False, check.why) for check in outcomes.not_run]


def _result(name: str, failed: bool, not_run: str) -> CheckResult:
    if failed:
        return CheckResult(name=name, outcome=CheckOutcome.FAILED)
    return (CheckResult(name=name, outcome=CheckOutcome.NOT_RUN, why=not_run) if not_run
            else CheckResult(name=name, outcome=CheckOutcome.PASSED))
