"""What crosses from a node to the control plane is a closed set of types, none of which can hold a record."""

import re
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta, Struct, inspect

from contracts import v1, v2
from contracts.envelope import Signed

GOES_UP: tuple[Any, ...] = (v1.AnyUp, v1.Fact, v1.Report, v2.AnyUp, v2.Fact, v2.Report)
STRING_LENGTH_MAX = 127
LIST_LENGTH_MAX = 1600
# Characters that prose, JSON, SQL literals and binary need, and identifiers do not.
FOREIGN = (
    " ",
    "\n",
    "\r",
    "\t",
    "\0",
    "'",
    '"',
    "{",
    "<",
    "*",
    ">",
    "/",
    "\\",
    "@",
    ",",
    "\xe9",
    "\uff41",
    "\u0430",
    "\u2028",
    "\U0001f600",
)


def openings(info: inspect.Type, path: str) -> Iterator[str]:
    """Yield every place below `info` where a record could hide, as a path and a reason."""
    match info:
        case inspect.Metadata():
            yield from openings(info.type, path)
        case inspect.StructType():
            if not info.forbid_unknown_fields:
                yield f"{path}: tolerates unknown fields"
            for field in info.fields:
                yield from openings(field.type, f"{path}.{field.encode_name}")
        case inspect.UnionType():
            for each in info.types:
                name = each.cls.__name__ if isinstance(each, inspect.StructType) else ""
                yield from openings(each, f"{path}|{name}")
        case inspect.ListType():
            if info.max_length is None or info.max_length > LIST_LENGTH_MAX:
                yield f"{path}: a list of any length"
            yield from openings(info.item_type, f"{path}[]")
        case inspect.StrType():
            yield from _string_openings(info, path)
        case inspect.IntType():
            if (info.ge is None and info.gt is None) or (info.le is None and info.lt is None):
                yield f"{path}: an integer of any size"
        case inspect.FloatType():
            if info.ge is None or info.le is None:
                yield f"{path}: a number of any size"
        case inspect.DateTimeType():
            if info.tz is not True:
                yield f"{path}: a time without its zone"
        case inspect.EnumType():
            if not all(
                isinstance(each.value, str) and re.fullmatch("[a-z0-9_-]{1,40}", each.value) for each in info.cls
            ):
                yield f"{path}: an enum whose values are not identifiers"
        case inspect.BoolType() | inspect.NoneType():
            pass
        case _:
            yield f"{path}: {type(info).__name__} can hold anything"


def _string_openings(info: inspect.StrType, path: str) -> Iterator[str]:
    if info.pattern is None or info.max_length is None or info.max_length > STRING_LENGTH_MAX:
        yield f"{path}: a string without a pattern and a length of at most {STRING_LENGTH_MAX}"
        return
    if not (info.pattern.startswith("^") and info.pattern.endswith(r"$(?!\n)")):
        yield f"{path}: a pattern that does not span the whole string"
    pattern = re.compile(info.pattern)
    for character in FOREIGN:
        if any(pattern.search(text) for text in (character, f"a{character}", f"{character}a", f"a{character}b")):
            yield f"{path}: a pattern that lets {character!r} pass"


def found(type_: Any) -> list[str]:
    return list(openings(inspect.type_info(type_), getattr(type_, "__name__", "union")))


@pytest.mark.parametrize("type_", GOES_UP, ids=str)
def test_no_message_that_goes_up_can_hold_a_record(type_: Any) -> None:
    """Every field that is reachable from a report is bounded in alphabet, length and range."""
    assert found(type_) == []


def test_the_envelope_of_a_report_holds_nothing_but_its_body() -> None:
    """Around the body, which is decoded as a closed report, there are a version, a key and a signature only."""
    assert [place for place in found(Signed) if not place.startswith("Signed.body:")] == []


class Colour(Enum):
    FREE = "any text at all"


def _carrier(field: Any) -> type[Struct]:
    return msgspec.defstruct("Carrier", [("field", field)], forbid_unknown_fields=True)


class Tolerant(Struct):
    number: Annotated[int, Meta(ge=0, le=9)]


@pytest.mark.parametrize(
    "field",
    [
        str,
        Annotated[str, Meta(max_length=10)],
        Annotated[str, Meta(pattern="^[a-z]+$")],
        Annotated[str, Meta(pattern="^.*$(?!\n)", max_length=10)],
        Annotated[str, Meta(pattern="[a-z]", max_length=10)],
        Annotated[str, Meta(pattern=r"^\w{1,9}$(?!\n)", max_length=9)],
        Annotated[str, Meta(pattern=r"^[a-z]{1,9}$(?!\n)", max_length=9000)],
        bytes,
        Any,
        object,
        msgspec.Raw,
        dict[str, int],
        set[int],
        tuple[int, ...],
        list[bool],
        Annotated[list[str], Meta(max_length=3)],
        int,
        Annotated[int, Meta(ge=0)],
        float,
        datetime,
        Colour,
        Tolerant,
        Annotated[list[Tolerant], Meta(max_length=3)],
        Tolerant | None,
        str | None,
    ],
    ids=str,
)
def test_a_field_that_could_hold_a_record_is_caught(field: Any) -> None:
    """The walk above finds each kind of opening, however deep."""
    nested = msgspec.defstruct("Outer", [("inner", _carrier(field) | None)], forbid_unknown_fields=True)
    assert found(nested)


def test_a_bounded_field_is_not_mistaken_for_an_opening() -> None:
    """The walk above does not cry wolf."""
    assert found(_carrier(Annotated[str, Meta(pattern=r"^[a-z]{1,9}$(?!\n)", max_length=9)])) == []


@pytest.mark.parametrize("report", [v1.Report, v2.Report])
def test_a_report_with_one_more_field_is_refused(report: Any) -> None:
    """An unknown field of a report is refused at every level, so nothing can ride along."""
    entry: dict[str, object] = {"kind": "pipeline", "name": "a", "generation": 1, "digest": "0" * 64}
    message: dict[str, object] = {"type": "sync", "index_digest": None, "wanted": [entry]}
    body: dict[str, object] = {
        "type": "report",
        "node": "node-1",
        "key": "U" + "A" * 55,
        "sequence": 1,
        "message": message,
    }
    assert msgspec.convert(body, report)
    for place in (body, message, entry):
        place["row"] = "secret"
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            msgspec.convert(body, report)
        del place["row"]
