"""What is said of copying a part of a table again: conditions on its columns, and what they can and cannot mend.

A request is a counter for each table, like that of a resync, so that it happens once; the conditions go with it. They are a
closed structure and never text of SQL: columns by name, a word for the comparison, literals as text. A person writes them,
the control plane carries them down, and a node gives them to its databases as identifiers and quoted literals. Nothing
of them ever goes up.

`v2` holds `Backfill` in a pipeline's document; both planes ask `removes` what a copy does to rows that the source lacks. What
goes up of copies is `CopyProgress`: numbers for each table.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated

from msgspec import Meta, Struct

from contracts.names import Count, Seconds, SqlName, TableName

CONDITIONS_MAX = 16
VALUES_MAX = 100
LITERAL_CHARACTERS_MAX = 200
COPIES_TOLD_MAX = 5
"""Of so many tables of a pipeline a heartbeat tells how far their copies are: those that are copied next."""

Literal = Annotated[
    str,
    Meta(
        pattern=r"^[^\x00-\x1f\x7f]{0,200}$(?!\n)",
        max_length=LITERAL_CHARACTERS_MAX,
        description="A value as PostgreSQL reads it for the column's type; at most 200 characters, none of them a control.",
    ),
]


class Comparison(Enum):
    """How a column is compared. As in SQL, a NULL matches none of these but `is null`."""

    EQUAL = "="
    NOT_EQUAL = "!="
    BELOW = "<"
    UP_TO = "<="
    ABOVE = ">"
    FROM = ">="
    IN = "in"
    BETWEEN = "between"
    """Both bounds count."""
    IS_NULL = "is null"
    IS_NOT_NULL = "is not null"


VALUES_OF: Mapping[Comparison, tuple[int, int]] = {
    **dict.fromkeys(Comparison, (1, 1)),
    Comparison.IN: (1, VALUES_MAX),
    Comparison.BETWEEN: (2, 2),
    Comparison.IS_NULL: (0, 0),
    Comparison.IS_NOT_NULL: (0, 0),
}
"""How many values each comparison has, at least and at most."""


class Condition(Struct, frozen=True, kw_only=True):
    """One comparison of one column with literals. How many there are depends on the comparison (`VALUES_OF`)."""

    column: SqlName
    comparison: Comparison
    values: Annotated[tuple[Literal, ...], Meta(max_length=VALUES_MAX)] = ()

    @property
    def is_whole(self) -> bool:
        """Whether it has as many values as its comparison needs."""
        least, most = VALUES_OF[self.comparison]
        return least <= len(self.values) <= most


class Backfill(Struct, frozen=True, kw_only=True):
    """The rows that match all of `where` are copied while `number` is beyond what the destination's checkpoint reached."""

    number: Count
    where: Annotated[tuple[Condition, ...], Meta(min_length=1, max_length=CONDITIONS_MAX)]


class CopyProgress(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """How far the copy of one table is."""

    table: TableName
    rows: Count = 0
    """Read so far; of a part those that match."""
    rows_estimated: Count = 0
    """About how many there are, by the server's statistics."""
    bytes: Count = 0
    seconds_left: Seconds | None = None
    """Until all of it is read, with the tables before it, by the rate so far; absent when nothing can be said of it."""
    part: bool = False
    """Only some of its rows are copied again."""
    paused: bool = False


_ORDERED = frozenset(
    {
        "smallint",
        "integer",
        "bigint",
        "numeric",
        "oid",
        "uuid",
        "bytea",
        "date",
        "boolean",
        "timestamp without time zone",
        "timestamp with time zone",
        "time without time zone",
    }
)


def has_one_order(type_text: str) -> bool:
    """Say whether values of a type compare alike at every server: their order depends on no collation.

    A modifier (`numeric(10,2)`, `timestamp(3) without time zone`) changes nothing of it.
    """
    start, end = type_text.find("("), type_text.find(")")
    plain = type_text if start < 0 else (type_text[:start] + type_text[end + 1 :]).strip()
    return plain in _ORDERED


def removes(where: Sequence[Condition], key_types: Mapping[str, str]) -> bool:
    """Say whether a copy of the rows that match `where` also deletes those that only the destination has.

    It does where both ends must agree on which keys match: every condition is on a column of the key whose type has one
    order everywhere. `key_types` has the type's text for each column of the key.
    """
    return all(has_one_order(key_types.get(condition.column, "")) for condition in where)
