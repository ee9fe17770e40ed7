"""A condition on a column as SQL: identifiers, the comparison's own words, and places or quoted literals for the values.

In flow a `Condition` and how its values are given; out flows a part of a WHERE clause. A literal is left without a type, so
the server reads it as the column's. Both ends of a copy call this, so both ask the same. Pure.
"""

import re
from collections.abc import Mapping, Sequence

from psycopg import sql

from contracts.backfilling import Comparison, Condition

_WORDS: Mapping[Comparison, str] = {
    Comparison.EQUAL: "{} = {}",
    Comparison.NOT_EQUAL: "{} <> {}",
    Comparison.BELOW: "{} < {}",
    Comparison.UP_TO: "{} <= {}",
    Comparison.ABOVE: "{} > {}",
    Comparison.FROM: "{} >= {}",
    Comparison.BETWEEN: "{} BETWEEN {} AND {}",
    Comparison.IS_NULL: "{} IS NULL",
    Comparison.IS_NOT_NULL: "{} IS NOT NULL",
}
_TIMES = ("date", "time")
_OF_THE_CLOCK = re.compile(r"\b(now|today|tomorrow|yesterday)\b", re.IGNORECASE)


def clause(condition: Condition, values: Sequence[sql.Composable]) -> sql.Composed:
    """Return the condition with `values`, one for each of its own."""
    column = sql.Identifier(condition.column)
    if condition.comparison is Comparison.IN:
        return sql.SQL("{} IN ({})").format(column, sql.SQL(", ").join(values))
    return sql.SQL(_WORDS[condition.comparison]).format(column, *values)


def literally(where: Sequence[Condition]) -> list[sql.Composed]:
    """Return conditions with their values as literals."""
    return [clause(each, [sql.Literal(value) for value in each.values]) for each in where]


def means_the_clock(condition: Condition, type_text: str) -> bool:
    """Say whether a value of a time would mean another moment each time it is read: `today`."""
    return type_text.startswith(_TIMES) and any(_OF_THE_CLOCK.search(value) for value in condition.values)
