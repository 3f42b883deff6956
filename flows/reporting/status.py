"""What `perennial status`, `history` and `contract diff` show."""

import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

from rich.table import Table

from contracts.core.digests import JsonObject
from contracts.core.errors import PerennialError
from contracts.core.gate_verdict import GateVerdict
from contracts.core.loading import contract_of_module, load_contract
from contracts.core.verdict import Verdict, as_json
from flows.reporting.gate_summary import gate_facts, gate_lines, not_run
from registry import layout, models
from registry.context import open_model
from registry.events import Layer, Recorded, Registered, encode_data
from registry.ledger import Ledger


def facts(model: str) -> JsonObject:
    """The champion, its lineage, the newest data, the last window and the replicas on this machine."""
    from deployments import (
        fleet,  # imported here: `history` and `contract diff` need none of these
        routes,
    )
    from flows.monitoring.estimates import estimates
    from flows.reporting.overview import overview
    from registry import data

    context = open_model(model)
    state, [brief] = context.ledger.state(), overview([model])
    versions = data.versions(context.store, context.name)
    windows = [{"window": key, **encode_data(state.windows[key])} for key in [*state.windows][-1:]]
    return {"model": context.name, "store": context.store.address, "versions": len(state.versions),
            "champion": state.champion, "previous": state.previous, "aliases": dict(state.aliases),
            "recalibrated": layer_text(layer) if (layer := state.layers.get(state.champion or "")) else None,
            "data": versions[-1].as_json() if versions else None,
            "last_window": windows[-1] if windows else None, **gate_facts(context, state),
            "unlabelled": [{"window": window} | as_json(estimate)
                           for window, estimate in estimates(context).items()] if versions else [],
            "open_alerts": [as_json(alert) for alert in state.open_alerts],
            "open_claims": [key for key, claim in state.claims.items() if claim.is_granted],
            "next_look": brief["next_look"], "under_way": brief["under_way"], "waits": brief["waits"],
            "replicas": [{"url": server.url, "version": server.version, "pid": server.pid}
                         for server in fleet.running(context.run, context.name)],
            "routed": routes.champion_urls(context.run, context.name),
            "callers": routes.model_url(context.run, context.name)}


def table(facts: JsonObject) -> Table:
    """The facts for a terminal."""
    table = Table(show_header=False, title=facts["model"])
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # never cut: digests are copied from here
    window = facts["last_window"]
    rows = {
        "store": facts["store"], "champion": facts["champion"] or "none: perennial train " + facts["model"],
        **({"recalibrated": facts["recalibrated"]} if facts["recalibrated"] else {}),
        "previous": facts["previous"] or "", "versions": str(facts["versions"]),
        "data": (f"{facts['data']['rows']:,} rows up to {facts['data']['newest']}" if facts["data"]
                 else "none"),
        "next look for data": facts["next_look"] or "by hand: perennial ingest " + facts["model"],
        "last window": f"{window['window']}: {window['verdict']['kind']}" if window else "none judged",
        "last gate": "\n".join(gate_lines(facts["last_gate"])),
        "limits": facts["limits"],
        "waits for labels": _lines(
            [waiting | {"interval": _interval(waiting)} for waiting in facts["unlabelled"]],
            "{window}: {rows:,} predictions, log loss {log_loss:.3f}{interval} (estimate)") or "nothing",
        "under way": "\n".join(facts["under_way"]) or "no retraining",
        "waits for": "\n".join(facts["waits"]) or "nothing",
        "alerts": _lines(facts["open_alerts"], "{kind} since {since}: {doing}") or "none open",
        "callers ask": (f"POST {facts['callers']}/predict" if facts["callers"]
                         else "nothing here: perennial serve " + facts["model"]),
        "replicas": _lines(facts["replicas"], "{url} {version:.12} (pid {pid})") or "none here",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _interval(estimate: Mapping[str, Any]) -> str:
    """The interval of an estimate, in words; empty where its errors are not known."""
    known = estimate["low"] is not None
    return ", 95 % of such from {low:.3f} to {high:.3f}".format_map(estimate) if known else ""


def _lines(items: Iterable[Mapping[str, Any]], template: str) -> str:
    return "\n".join(template.format_map(item) for item in items)


class EventRow(TypedDict):
    """An event of the ledger for people to read: `about` is one line."""

    seq: int
    at: str
    by: str
    kind: str
    about: str
    data: JsonObject


def events(ledger: Ledger, first: int, end: int) -> list[EventRow]:
    """The events with the numbers [first, end), with a line on what each is about."""
    return [{"seq": event.seq, "at": event.at, "by": event.by, "kind": event.kind,
             "about": _about(event.data), "data": encode_data(event.data)}
            for event in ledger.events(first, end)]


def _about(event: Recorded) -> str:
    parts = [digest[:12] for name in ("version", "to", "data") if (digest := getattr(event, name, None))]
    if isinstance(event, Registered) and event.layer:
        parts.append(layer_text(event.layer))
    if isinstance(event, Registered) and event.challenger:
        parts.append(f"of {event.challenger}")
    parts += [str(text) for name in ("key", "outcome", "reason", "why")
              if (text := getattr(event, name, None))]
    verdict: Verdict | None = getattr(event, "verdict", None)
    if verdict:
        why = [*verdict.reasons, *(not_run(verdict) if isinstance(verdict, GateVerdict) else ())]
        parts.append(f"{verdict.outcome} {getattr(verdict, 'kind', '')}".strip()
                     + (": " + "; ".join(why) if why else ""))
    return " ".join(parts)


def layer_text(layer: Layer) -> str:
    """What a version was recalibrated from, in words."""
    return (f"recalibrated from {layer.base[:12]} on {layer.rows:,} labels of {layer.start[:10]} to "
            f"{layer.until[:10]}")


def described(name: str) -> JsonObject:
    """`Contract.describe()` of a contract here, of a .py file, or as
    stored with a version (flights@champion)."""
    if "@" in name:
        model, _, ref = name.partition("@")
        context = open_model(model)
        version = models.resolve(context.ledger, ref)
        facts: JsonObject = json.loads(context.store.get(layout.version_file(context.name, version,
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
    sys.modules[spec.name] = module  # where inspect.getsource looks for a class
    spec.loader.exec_module(module)
    return module
