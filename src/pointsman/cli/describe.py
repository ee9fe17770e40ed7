"""The page that `describe` prints: headings and pairs, the same for every kind, with what the codes mean in words."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from contracts.codes import Code, explain
from pointsman.cli import render
from pointsman.cli.kinds import Kind
from pointsman.cli.render import visible

_LEFT_OUT = ("kind", "name", "status", "events", "warnings", "effects", "reconciles")
_TELEMETRY: tuple[tuple[str, str, str], ...] = (
    ("rows_total", "Rows", "count"),
    ("transactions_total", "Transactions", "count"),
    ("bytes_total", "Volume", "bytes"),
    ("lag_bytes", "Lag", "bytes"),
    ("lag_seconds", "Lag in time", "seconds"),
    ("latency_seconds", "Commit to destination", "seconds"),
    ("snapshot_rows", "Copied so far", "count"),
    ("snapshot_rows_estimated", "Rows to copy, about", "count"),
    ("snapshot_bytes", "Volume copied", "bytes"),
    ("snapshot_seconds_left", "Copied in about", "duration"),
    ("buffer_bytes", "In the buffer", "bytes"),
    ("undecodable_values_total", "Values with odd bytes", "count"),
    ("errors_total", "Errors", "count"),
    ("dead_letters", "Dead letters", "count"),
    ("columns_ignored", "Columns left out", "count"),
)
_SLOT: tuple[tuple[str, str, str], ...] = (
    ("retained_bytes", "Log kept", "bytes"),
    ("growth_bytes_per_second", "Grows by", "rate"),
    ("limit_bytes", "Limit", "bytes"),
    ("seconds_left", "Time left", "duration"),
    ("unconfirmed_bytes", "Not confirmed", "bytes"),
    ("safe_bytes", "Until the server gives it up", "bytes"),
    ("written_bytes_per_second", "The server writes", "rate"),
    ("inactive_seconds", "Not read for", "duration"),
    ("catalog_age", "Catalog held back", "transactions"),
    ("spill_bytes", "Spilled while decoding", "bytes"),
)


def page(kind: Kind, resource: Mapping[str, Any]) -> Group:
    """Return the page about one resource."""
    status = resource.get("status")
    status = status if isinstance(status, Mapping) else {}
    title = Text.assemble((f"{kind.name} ", "bold"), (visible(str(resource.get("name"))), "bold"))
    if status.get("phase"):
        title.append("  ")
        title.append(render.light(visible(str(status["phase"]))))
    parts: list[Any] = [title, _pairs(_written(resource))]
    if status:
        parts += _section("Status", _pairs(_status(status)))
        parts += _section("Conditions", _conditions(status.get("conditions") or ()))
        telemetry = status.get("telemetry") or {}
        parts += _section("Flow", _pairs(_telemetry(telemetry)))
        parts += _section("Copies", _copies(telemetry.get("copies") or ()))
        parts += _section("Slot at the source", _pairs(_slot(telemetry.get("slot") or {})))
        parts += _section("Reconciled", _reconciles(status.get("reconciles") or ()))
    parts += _section("Events", _events(resource.get("events") or ()))
    return Group(*parts)


def _section(heading: str, content: Table | None) -> list[Any]:
    return [] if content is None or content.row_count == 0 else [Text(""), Text(heading, style="bold"), content]


def _grid(columns: int) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(columns):
        grid.add_column(overflow="fold")
    return grid


def _pairs(pairs: Iterator[tuple[str, Text | str]]) -> Table:
    grid = _grid(2)
    for name, value in pairs:
        grid.add_row(Text(f"  {name}", style="dim"), value if isinstance(value, Text) else Text(visible(value)))
    return grid


def _title(key: str) -> str:
    return key.replace("_", " ").capitalize()


def _written(resource: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in resource.items():
        if key not in _LEFT_OUT and value not in (None, [], {}):
            yield _title(key), _flat(value)


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_flat(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, list):
        return (
            "; ".join(_flat(inner) for inner in value)
            if any(isinstance(v, Mapping) for v in value)
            else (", ".join(str(inner) for inner in value))
        )
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _status(status: Mapping[str, Any]) -> Iterator[tuple[str, Text | str]]:
    for key, value in status.items():
        if key in ("conditions", "telemetry", "reconciles", "code", "hint") or value in (None, [], {}):
            continue
        yield _title(key), render.light(visible(str(value))) if key == "phase" else _flat(value)
    yield from _meaning(status.get("code"), status.get("hint"))


def _meaning(code: Any, hint: Any) -> Iterator[tuple[str, Text | str]]:
    if not code:
        return
    yield "Code", Text(visible(str(code)), style="bold red")
    try:
        explanation = explain(Code(code))
        yield "Meaning", explanation.summary
        yield "Next", str(hint or explanation.hint)
    except ValueError:
        if hint:
            yield "Next", str(hint)


def _conditions(conditions: Sequence[Mapping[str, Any]]) -> Table:
    grid = _grid(4)
    for condition in conditions:
        state = str(condition.get("status"))
        good = state.lower() == "true"
        grid.add_row(
            Text(f"  {visible(str(condition.get('type')))}"),
            Text(visible(state), style="green" if good else ""),
            Text(visible(str(condition.get("reason") or ""))),
            Text(visible(str(condition.get("message") or "")), style="dim"),
        )
    return grid


def _telemetry(telemetry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, name, unit in _TELEMETRY:
        value = telemetry.get(key)
        if isinstance(value, (int, float)):
            yield name, quantity(value, unit)


def _copies(tables: Sequence[Mapping[str, Any]]) -> Table:
    """Return how far the copies of single tables are, those that are read next first."""
    grid = _grid(4)
    for table in tables:
        rows, about = int(table.get("rows") or 0), int(table.get("rows_estimated") or 0)
        left = table.get("seconds_left")
        kind = "paused" if table.get("paused") else "copying"
        grid.add_row(
            Text(f"  {visible(str(table.get('table')))}"),
            Text(f"{kind} a part" if table.get("part") else kind, style="bold" if table.get("paused") else ""),
            Text(f"{rows:,} rows of about {about:,}, {render.size(table.get('bytes') or 0)}"),
            Text("" if left is None else f"{render.age(left)} left", style="dim"),
        )
    return grid


def _slot(slot: Mapping[str, Any]) -> Iterator[tuple[str, Text | str]]:
    if not slot:
        return
    state = str(slot.get("status"))
    yield "State", Text(visible(state), style="bold red" if state in ("lost", "missing", "unreserved") else "")
    if slot.get("invalidation"):
        yield "Given up for", str(slot["invalidation"])
    # What is 0 is left out of the numbers on their way; these two are worth saying.
    told = {"retained_bytes": 0, "growth_bytes_per_second": 0.0, **slot}
    for key, name, unit in _SLOT:
        value = told.get(key)
        if isinstance(value, (int, float)):
            yield name, quantity(value, unit)
    if "limit_bytes" not in slot:
        yield "Limit", "none known: its disk may fill up"


def quantity(value: float, unit: str) -> str:
    """Return a number with its unit: a count with thousands apart, bytes, or seconds (ms below one)."""
    if unit == "bytes":
        return render.size(value)
    if unit == "rate":
        return f"{render.size(value)}/s"
    if unit == "duration":
        return render.age(value)
    if unit == "transactions":
        return f"{value:,} transactions"
    if unit == "seconds":
        return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
    return f"{value:,}"


def _reconciles(tables: Sequence[Mapping[str, Any]]) -> Table:
    """Return what each table's newest comparison found; the rows' keys are on the customer's side."""
    grid = _grid(4)
    for table in tables:
        counts = [
            f"{int(table.get(f'rows_{word}') or 0):,} {word}"
            for word in ("compared", "missing", "extra", "different", "unsettled", "repaired")
            if word == "compared" or table.get(f"rows_{word}")
        ]
        found = any(table.get(f"rows_{word}") for word in ("missing", "extra", "different"))
        state = str(table.get("state"))
        if state == "done":
            counts.append("differences found" if found else "no difference")
        grid.add_row(
            Text(f"  {visible(str(table.get('table')))}"),
            Text(visible(state), style={"done": "green", "failed": "bold red"}.get(state, "")),
            Text(", ".join(counts) if state in ("done", "failed") else ""),
            Text(visible(str(table.get("code") or (since(table["at"]) if table.get("at") else ""))), style="dim"),
        )
        if table.get("hint"):
            grid.add_row("", "", Text(visible(str(table["hint"])), style="dim"), "")
    return grid


def _events(events: Sequence[Mapping[str, Any]]) -> Table:
    grid = _grid(4)
    for event in events:
        grid.add_row(
            Text(f"  {event.get('id')}", style="dim"),
            Text(since(event.get("at")), style="dim"),
            Text(visible(str(event.get("type")))),
            Text(visible(f"by {event.get('actor')}"), style="dim"),
        )
    return grid


def since(moment: Any) -> str:
    """Return how long ago a moment was, as `5m ago`."""
    try:
        then = moment if isinstance(moment, datetime) else datetime.fromisoformat(str(moment))
    except ValueError:
        return "-"
    return f"{render.age((datetime.now(UTC) - then).total_seconds())} ago"
