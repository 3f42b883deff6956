"""What `perennial status`, `history` and `contract diff` show."""

import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

from rich.table import Table

from contracts.core.errors import PerennialError
from contracts.core.loading import contract_of_module, load_contract
from contracts.core.verdict import Verdict, as_json
from registry import layout, models
from registry.context import ModelContext, open_model
from registry.events import Recorded, encode_data


def facts(model: str) -> dict[str, Any]:
    """The champion, its lineage, the newest data, the last window and the replicas on this machine."""
    from deployments import (
        fleet,  # the other questions need none of these
        routes,
    )
    from flows.monitoring.outcomes import unlabelled_windows
    from registry import data

    context = open_model(model)
    state = context.ledger.state()
    versions = data.versions(context.store, context.name)
    windows = [{"window": key, **encode_data(judged)} for key, judged in state.windows.items()]
    return {"model": context.name, "store": context.store.address, "versions": len(state.versions),
            "champion": state.champion, "previous": state.previous, "aliases": state.aliases,
            "data": versions[-1].as_json() if versions else None,
            "last_window": windows[-1] if windows else None,
            "unlabelled": [{"window": window} | as_json(estimate)
                           for window, estimate in unlabelled_windows(context).items()] if versions else [],
            "open_alerts": [as_json(alert) for alert in state.open_alerts],
            "open_claims": [key for key, claim in state.claims.items() if claim.is_granted],
            "replicas": [{"url": one.url, "version": one.version, "pid": one.pid}
                         for one in fleet.running(context.run, context.name)],
            "routed": routes.champion_urls(context.run, context.name),
            "callers": routes.model_url(context.run, context.name)}


def table(found: dict[str, Any]) -> Table:
    shown = Table(show_header=False, title=found["model"])
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")  # a digest is there to be copied
    window = found["last_window"]
    rows = {
        "store": found["store"], "champion": found["champion"] or "none: perennial train " + found["model"],
        "previous": found["previous"] or "", "versions": str(found["versions"]),
        "data": f"{found['data']['rows']:,} rows up to {found['data']['end']}" if found["data"] else "none",
        "last window": f"{window['window']}: {window['verdict']['kind']}" if window else "none judged",
        "waits for labels": _lines(
            found["unlabelled"],
            "{window}: {rows:,} predictions, log loss {log_loss:.3f} (estimate)") or "nothing",
        "retraining": ", ".join(found["open_claims"]) or "none in flight",
        "alerts": _lines(found["open_alerts"], "{kind} since {since}: {doing}") or "none open",
        "callers ask": (f"POST {found['callers']}/predict" if found["callers"]
                         else "nothing here: perennial serve " + found["model"]),
        "replicas": _lines(found["replicas"], "{url} {version:.12} (pid {pid})") or "none here",
    }
    for name, value in rows.items():
        shown.add_row(name, value)
    return shown


def _lines(items: Iterable[Mapping[str, Any]], template: str) -> str:
    return "\n".join(template.format_map(item) for item in items)


class EventRow(TypedDict):
    """An event of the ledger for people to read: `about` is one line."""

    seq: int
    at: str
    by: str
    kind: str
    about: str
    data: dict[str, Any]


def events(context: ModelContext) -> list[EventRow]:
    """Every event with a line on what it is about."""
    return [{"seq": event.seq, "at": event.at, "by": event.by, "kind": event.kind,
             "about": _about(event.data), "data": encode_data(event.data)}
            for event in context.ledger.events()]


def _about(event: Recorded) -> str:
    parts = [digest[:12] for name in ("version", "to", "data") if (digest := getattr(event, name, None))]
    parts += [str(text) for name in ("key", "outcome", "reason", "why")
              if (text := getattr(event, name, None))]
    verdict: Verdict | None = getattr(event, "verdict", None)
    if verdict:
        why = "" if verdict.passed else ": " + "; ".join(verdict.reasons)
        parts.append(f"{verdict.outcome} {getattr(verdict, 'kind', '')}".strip() + why)
    return " ".join(parts)


def described(name: str) -> dict[str, Any]:
    """A contract's description: of a contract here, of a .py
    file, or as kept with a version (flights@champion)."""
    if "@" in name:
        model, _, ref = name.partition("@")
        context = open_model(model)
        version = models.resolve(context.ledger, ref)
        facts: dict[str, Any] = json.loads(context.store.get(layout.version_file(context.name, version,
                                                                                 "contract.json")))
        return facts
    if not name.endswith(".py"):
        return load_contract(name).describe()
    if not Path(name).is_file():
        raise PerennialError(f"no file {name}; name a contract, a .py file or model@version")
    return contract_of_module(name, lambda: _run(name)).describe()


def _run(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"compared_{abs(hash(file))}", file)
    if spec is None or spec.loader is None:
        raise PerennialError(f"{file} is no Python file; name a contract's file, as contracts/flights.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # inspect.getsource of a class asks here
    spec.loader.exec_module(module)
    return module
