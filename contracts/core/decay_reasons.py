"""What the checks on labels found, in words."""

from collections.abc import Sequence

from contracts.core.outcome_verdict import OutcomeCheck, OutcomeFigures, OutcomeMeasure
from contracts.core.verdict import Performance

SHARES = OutcomeMeasure.CLASS_SHARES


def decay_reasons(outcomes: OutcomeFigures | None) -> list[str]:
    """Why the model counts as decayed; empty if it does not."""
    if outcomes is None:
        return []
    failed = [check for check in outcomes.failed if check.measure is not SHARES]
    if not failed:
        return []
    where = [f"since {outcomes.since.replace('T', ' ')}" if outcomes.since else "",
             f"carried by {outcomes.slice}" if outcomes.slice else ""]
    return ["; ".join([_summary(outcomes), *map(_sentence, _largest(failed)), *filter(None, where)])]


def _largest(failed: Sequence[OutcomeCheck]) -> list[OutcomeCheck]:
    """Those of all rows, or if none is the one of the slice that is surest."""
    whole = [check for check in failed if not check.slice]
    return whole or [min(failed, key=lambda check: check.p_value)]


def _summary(outcomes: OutcomeFigures) -> str:
    parts = [f"labels of {outcomes.rows} rows: log loss {outcomes.loss:.3f}, promised "
             f"{outcomes.loss_promised:.3f}"]
    if outcomes.loss_trained is not None:
        parts.append(f"{outcomes.loss_trained:.3f} at training")
    if outcomes.naive_loss is not None:
        parts.append(f"{outcomes.naive_loss:.3f} by class shares alone")
    return ", ".join(parts)


def _sentence(check: OutcomeCheck) -> str:
    of = f" of {check.slice}" if check.slice else ""
    return f"{check.measure}{of} by {check.effect:.3f} more than is ordinary, threshold {check.threshold:.3f}"


def class_share_reasons(outcomes: OutcomeFigures | None, performance: Performance | None) -> list[str]:
    """Why the labels' class shares are not those that the model promised; empty if they are."""
    failed = [check for check in outcomes.failed if check.measure is SHARES] if outcomes else []
    if not failed or performance is None:
        return []
    changes = ", ".join(f"{name} {share:.1%} for {performance.expected[name]:.1%}"
                        for name, share in performance.observed.items())
    return [f"labels: {changes} expected, on {failed[0].rows} rows: gap {failed[0].effect:.4f}, limit "
            f"{failed[0].threshold:.4g}"]


def missing_evidence(outcomes: OutcomeFigures | None) -> list[str]:
    """Why a window that nothing speaks against is not fine: its labels' checks could not run, or the model
    was no better on them than the class shares alone."""
    if outcomes is None:
        return []
    if not outcomes.checks:
        return [f"labels: {outcomes.not_run[0].why}: no check of them could run"]
    naive = [check for check in outcomes.checks if check.measure is OutcomeMeasure.NAIVE]
    if naive and naive[0].effect > 0 and not naive[0].failed:
        return [f"labels: log loss {outcomes.loss:.3f} is no better than that of the class shares alone, "
                f"{outcomes.naive_loss:.3f}, and {naive[0].rows} rows are too few to say that it is worse"]
    return []
