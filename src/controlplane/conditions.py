"""Reads conditions as people write them, `id >= 1000` or `state in (new, 'on hold')`, into the contract's closed structure.

In flow texts of `resync --where`, and what is known of the table's columns; out flow `Condition`s, or a `Refused` that points
at the text and never quotes it. So no text of anybody's reaches a database: a node gets columns, words and literals.
Pure; called by the API, before the command.

A text is a column, a comparison, and what that needs. A value is written as it is, or between single quotes with each
quote in it doubled. A single value may have spaces without quotes; in a list and with `between` one that has a comma, a
parenthesis or the word `and` needs quotes.
"""

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from contracts.backfilling import LITERAL_CHARACTERS_MAX, Comparison, Condition, Literal
from contracts.names import SQL_NAME_PATTERN, matches
from controlplane.refusals import Refused, refused_at

_HEAD = re.compile(
    r"\s*(?P<column>[A-Za-z0-9_$]+)\s*"
    r"(?P<word>!=|<>|<=|>=|=|<|>|\bis\s+not\s+null\b|\bis\s+null\b|\bnot\s+in\b|\bin\b|\bbetween\b|\blike\b)\s*",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"'((?:[^']|'')*)'")
_AND = re.compile(r"\s+and\s+", re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"\s*[+-]?[0-9]{1,19}\s*")
_WHOLE_NUMBERS: Mapping[str, int] = {"smallint": 15, "integer": 31, "bigint": 63}
_SPELT = {"<>": "!="}
_TEXT_MAX = 20_000


class ColumnKnown(Struct, frozen=True):
    """A column as a node described it last: the type's text, and whether it belongs to the key."""

    type: str
    key: bool


def parse(texts: Sequence[str]) -> tuple[Condition, ...]:
    """Return the conditions that `texts` say.

    Raises:
        Refused: invalid_condition, at the text that is none.
    """
    return tuple(_condition(text, f"/where/{number}") for number, text in enumerate(texts))


def check(where: Sequence[Condition], columns: Mapping[str, ColumnKnown]) -> None:
    """Hold conditions to what is known of the table's columns; nothing is known of a table that no node has described.

    Raises:
        Refused: unknown_column, or invalid_condition where a value cannot be of the column's type.
    """
    for number, condition in enumerate(where):
        known = columns.get(condition.column)
        if known is None and columns:
            raise refused_at("unknown_column", f"/where/{number}", "the table has no such column")
        bits = _WHOLE_NUMBERS.get(known.type) if known is not None else None
        if bits is not None and not all(_is_whole_number(value, bits) for value in condition.values):
            raise refused_at(
                "invalid_condition", f"/where/{number}", "the column holds whole numbers, the value is none"
            )


def _is_whole_number(text: str, bits: int) -> bool:
    return _WHOLE_NUMBER.fullmatch(text) is not None and -(1 << bits) <= int(text) < 1 << bits


def _condition(text: str, pointer: str) -> Condition:
    head = _HEAD.match(text) if len(text) <= _TEXT_MAX else None
    if head is None or not matches(SQL_NAME_PATTERN, head["column"]):
        raise _refusal(pointer, "a column and a comparison are expected")
    word = " ".join(head["word"].lower().split())
    try:
        comparison = Comparison(_SPELT.get(word, word))
    except ValueError:
        raise _refusal(pointer, "there is no such comparison") from None
    condition = Condition(
        column=head["column"], comparison=comparison, values=_values(text[head.end() :].strip(), comparison, pointer)
    )
    if not condition.is_whole:
        raise _refusal(pointer, "the number of values is not what the comparison needs")
    return condition


def _values(text: str, comparison: Comparison, pointer: str) -> tuple[Literal, ...]:
    if comparison in (Comparison.IS_NULL, Comparison.IS_NOT_NULL):
        if text:
            raise _refusal(pointer, "nothing may follow")
        return ()
    if comparison is Comparison.IN:
        if not (text.startswith("(") and text.endswith(")")):
            raise _refusal(pointer, "a list in parentheses is expected")
        return _list(text[1:-1], pointer)
    if comparison is Comparison.BETWEEN:
        return _bounds(text, pointer)
    return (_single(text, pointer),)


def _single(text: str, pointer: str) -> Literal:
    """Return a value that has its text for itself."""
    if text.startswith("'"):
        quoted = _QUOTED.fullmatch(text)
        if quoted is None:
            raise _refusal(pointer, "a quote has no end, or something follows it")
        return _checked(quoted[1].replace("''", "'"), pointer)
    if not text:
        raise _refusal(pointer, "a value is missing; an empty text is ''")
    if text[0] in "=<>!~":
        raise _refusal(pointer, "there is no such comparison; a value that begins like one needs quotes around it")
    if text.lower() == "null":
        raise _refusal(pointer, "nothing equals NULL; ask for `is null`")
    return _checked(text, pointer)


def _list(text: str, pointer: str) -> tuple[Literal, ...]:
    """Return the values between commas; those in quotes may hold any."""
    values: list[Literal] = []
    rest = text.strip()
    while True:
        quoted = _QUOTED.match(rest)
        end = quoted.end() if quoted is not None else rest.find(",") if "," in rest else len(rest)
        value, rest = rest[:end].strip(), rest[end:].strip()
        if quoted is None and set("()'") & set(value):
            raise _refusal(pointer, "a value with quotes or parentheses needs quotes around it")
        values.append(_single(value, pointer))
        if not rest:
            return tuple(values)
        if not rest.startswith(","):
            raise _refusal(pointer, "a comma is expected behind a quoted value")
        rest = rest[1:].strip()


def _bounds(text: str, pointer: str) -> tuple[Literal, ...]:
    quoted = _QUOTED.match(text)
    word = _AND.search(text, quoted.end() if quoted is not None else 0)
    if word is None:
        raise _refusal(pointer, "`between` needs two values with `and` in between")
    return _single(text[: word.start()].strip(), pointer), _single(text[word.end() :].strip(), pointer)


def _checked(value: str, pointer: str) -> Literal:
    if len(value) > LITERAL_CHARACTERS_MAX or any(ord(letter) < 0x20 or ord(letter) == 0x7F for letter in value):
        raise _refusal(pointer, f"a value may have {LITERAL_CHARACTERS_MAX} characters, none of them a control")
    return value


def _refusal(pointer: str, message: str) -> Refused:
    return refused_at("invalid_condition", pointer, message)
