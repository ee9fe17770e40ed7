"""`node dlq …`: the dead letters of a pipeline, on the customer's side only. No API is asked, and nothing goes up.

It runs beside the node, as whoever may read the node's folder: from there come the destination's address and secret.
Letters hold values; a table and `show` print them with control characters made visible.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from contracts.codes import explain
from pointsman.cli import render
from pointsman.cli.output import output_option
from pointsman.cli.render import Column, Format, visible
from pointsman.problems import CODES, Exit, Problem

if TYPE_CHECKING:
    from dataplane.sinks.postgres.letter_desk import Choice, LetterDesk
    from dataplane.sinks.postgres.letter_table import Stored

T = TypeVar("T")

LIST_DEFAULT = 100
LIST_MAX = 10_000

_folder = click.option("--folder", required=True, metavar="FOLDER", help="The node's folder.")
_pipeline = click.argument("pipeline")
_tables = click.option(
    "--table", "tables", multiple=True, metavar="TABLE", help="Only this schema.table; again for more."
)
_ids = click.option("--id", "ids", type=int, multiple=True, metavar="ID", help="Only this letter; again for more.")
_code = click.option(
    "--cause", "code", metavar="CODE", help="Only letters with this cause, such as sink_value_refused."
)


@click.group("dlq")
def dead_letters() -> None:
    """Look at a pipeline's dead letters, apply them again, or let them go."""


def _chosen(function: Callable[..., None]) -> Callable[..., None]:
    for option in (_code, _ids, _tables, _folder, _pipeline):
        function = option(function)
    return function


_COLUMNS = (
    Column("ID", "id", right=True),
    Column("TABLE", "table"),
    Column("KEY", lambda item: _pairs(item["key"])),
    Column("OP", "op"),
    Column("CAUSE", "cause.code"),
    Column("SQLSTATE", "cause.sql_state"),
    Column("COLUMN", "cause.column"),
    Column("POSITION", lambda item: f"{item['position']['lsn']}/{item['position']['ordinal']}"),
    Column("COMMITTED", "commit_time"),
    Column("ATTEMPTS", "attempts", right=True),
)


@dead_letters.command("list")
@_chosen
@click.option("--limit", type=click.IntRange(1, LIST_MAX), default=LIST_DEFAULT, show_default=True, help="How many.")
@output_option
def dlq_list(
    pipeline: str,
    folder: str,
    tables: tuple[str, ...],
    ids: tuple[int, ...],
    code: str | None,
    limit: int,
    output: Format,
) -> None:
    """List dead letters, oldest first: which changes, of which keys, and why. `show` prints the values as well."""
    choice = _choice(tables, ids, code)

    async def read(desk: "LetterDesk") -> tuple[int, list[dict[str, Any]]]:
        return await desk.count(choice), [_item(each) for each in await desk.oldest(choice, limit)]

    count, items = _at_desk(folder, pipeline, read)
    for item in items:
        del item["row"]
    render.print_items(items, _COLUMNS, output, empty="There are no dead letters.")
    if count > len(items):
        render.say(f"{count - len(items)} more: --limit shows them.")


@dead_letters.command("show")
@_pipeline
@click.argument("id", type=int)
@_folder
@output_option
def dlq_show(pipeline: str, id: int, folder: str, output: Format) -> None:  # noqa: A002 - click names it as people do
    """Show one dead letter: its values, as the source wrote them, and the destination's own words."""
    choice = _choice((), (id,), None)

    async def read(desk: "LetterDesk") -> list[dict[str, Any]]:
        return [_item(each) for each in await desk.oldest(choice, 1)]

    found = _at_desk(folder, pipeline, read)
    if not found:
        raise _unknown(str(id), pipeline, folder)
    render.print_one(found[0], output, text=_page)


@dead_letters.command("replay")
@_chosen
@output_option
def dlq_replay(
    pipeline: str, folder: str, tables: tuple[str, ...], ids: tuple[int, ...], code: str | None, output: Format
) -> None:
    """Apply dead letters again, after the destination was mended: for each key all of them, oldest first.

    One that is refused again stays, and so do those behind it. The choice grows to whole keys, so that order is kept.
    """
    choice = _choice(tables, ids, code)
    came = _at_desk(folder, pipeline, lambda desk: desk.replay(choice))
    item = {"pipeline": pipeline, "applied": came.applied, "refused": came.refused, "behind": came.behind}
    words = f"{came.applied} applied, {came.refused} refused again, {came.behind} waiting behind those"
    render.print_one(item, output, text=lambda _: words)
    if came.refused:
        render.say(f"next: pointsman node dlq list {visible(pipeline)} --folder {folder}")


@dead_letters.command("drop")
@_chosen
@click.option("--yes", is_flag=True, help="Do it. Without this the command only says what it would do.")
@output_option
def dlq_drop(
    pipeline: str,
    folder: str,
    tables: tuple[str, ...],
    ids: tuple[int, ...],
    code: str | None,
    yes: bool,
    output: Format,
) -> None:
    """Let dead letters go for good. The rows at the destination stay as they are, behind the source.

    A key without letters flows again with its next change. Reconcile or resync the table to make it equal.
    """
    choice = _choice(tables, ids, code)
    if not yes:
        count = _at_desk(folder, pipeline, lambda desk: desk.count(choice))
        raise Problem(
            "confirmation_needed",
            f"{CODES['confirmation_needed'][0]} It would drop {count} dead letters.",
            hint=CODES["confirmation_needed"][1],
            exit_code=Exit.USAGE,
        )
    dropped = _at_desk(folder, pipeline, lambda desk: desk.drop(choice))
    render.print_one({"pipeline": pipeline, "dropped": dropped}, output, text=lambda _: f"{dropped} dropped")


def _choice(tables: tuple[str, ...], ids: tuple[int, ...], code: str | None) -> "Choice":
    from dataplane.sinks.postgres.letter_desk import Choice

    return Choice(tables=tables or None, ids=ids or None, code=code)


def _at_desk(folder: str, pipeline: str, work: "Callable[[LetterDesk], Coroutine[Any, Any, T]]") -> T:
    """Do something at a pipeline's desk.

    Raises:
        Problem: the node or the pipeline is not here, or the destination cannot be asked.
    """
    from dataplane.failures import Failure
    from dataplane.node import dead_letters as letters

    path = Path(folder).resolve()

    async def at_desk() -> T:
        async with letters.desk(path, pipeline) as desk:
            return await work(desk)

    try:
        return asyncio.run(at_desk())
    except letters.UnknownHere as unknown:
        names = ", ".join(unknown.known) or "none"
        raise Problem(
            "pipeline_not_here",
            f"{CODES['pipeline_not_here'][0][:-1]}: {pipeline}. It holds {names}.",
            hint=CODES["pipeline_not_here"][1],
            exit_code=Exit.NOT_FOUND,
        ) from None
    except Failure as failure:
        where = ", ".join(part for part in (failure.table, failure.column, failure.sql_state) if part)
        message = f"{failure.args[0]}{f' ({where})' if where else ''}"
        raise Problem(failure.code.value, message, hint=explain(failure.code).hint) from None
    except (OSError, ValueError):
        raise Problem(
            "node_not_joined",
            f"No node has joined from {folder}.",
            hint=CODES["node_not_joined"][1],
            exit_code=Exit.NOT_FOUND,
        ) from None


def _unknown(id_: str, pipeline: str, folder: str) -> Problem:
    return Problem(
        "dead_letter_unknown",
        f"{CODES['dead_letter_unknown'][0][:-1]}: {id_}.",
        hint=CODES["dead_letter_unknown"][1],
        next_command=f"pointsman node dlq list {visible(pipeline)} --folder {folder}",
        exit_code=Exit.NOT_FOUND,
    )


def _item(stored: "Stored") -> dict[str, Any]:
    from dataplane.node.statuses import instant

    letter = stored.letter
    return {
        "id": stored.id,
        "table": letter.table.table,
        "op": letter.op.name.lower(),
        "key": letter.key,
        "old_key": letter.old_key,
        "cause": {
            "code": letter.cause.code.value,
            "sql_state": letter.cause.sql_state,
            "column": letter.cause.column,
            "message": letter.cause.message,
        },
        "position": {"lsn": letter.position.lsn, "ordinal": letter.position.ordinal},
        "commit_time": instant(letter.commit_time / 1e6),
        "at": stored.at,
        "attempts": stored.attempts,
        "row": [
            {
                "column": column.name,
                "type": column.type,
                "value": letter.row.get(column.name),
                "unchanged": column.name in letter.unchanged,
            }
            for column in letter.table.columns
        ],
    }


def _pairs(values: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name}={'NULL' if value is None else value}" for name, value in values.items())


def _page(item: Mapping[str, Any]) -> Group:
    cause = item["cause"]
    about = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    told = (
        ("Letter", str(item["id"])),
        ("Change", f"{item['op']} in {item['table']}"),
        ("Old key", _pairs(item["old_key"]) if item["old_key"] else ""),
        ("Cause", cause["code"]),
        ("SQLSTATE", cause["sql_state"] or ""),
        ("Column", cause["column"] or ""),
        ("Message", cause["message"]),
        ("Committed", str(item["commit_time"])),
        ("Position", f"{item['position']['lsn']}/{item['position']['ordinal']}"),
        ("Here since", str(item["at"])),
        ("Attempts", str(item["attempts"])),
    )
    for name, value in told:
        if value:
            about.add_row(Text(name, style="dim"), Text(visible(value)))
    row = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("COLUMN", "TYPE", "VALUE"):
        row.add_column(heading, overflow="fold")
    for each in item["row"]:
        value = "(unchanged, not sent)" if each["unchanged"] else "NULL" if each["value"] is None else each["value"]
        plain = each["unchanged"] or each["value"] is None
        row.add_row(
            Text(visible(each["column"])),
            Text(visible(each["type"]), style="dim"),
            Text(visible(value), style="dim" if plain else ""),
        )
    return Group(about, Text(""), row)
