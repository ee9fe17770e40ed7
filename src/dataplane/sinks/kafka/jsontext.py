"""PostgreSQL's text of a value → JSON, for a whole column at once.

In flows an Arrow string column as a source made it, and the column's type; out flows an Arrow string column in which
every value is a piece of JSON. Called by `envelope`. Nothing handles values one by one but those that need an escape.

| PostgreSQL | JSON |
|---|---|
| smallint, integer, bigint, oid | a number |
| real, double precision | a number; NaN and the infinities, which JSON lacks, are strings |
| boolean | true, false |
| all else, numeric among them | a string with PostgreSQL's own text: no digit is lost |
"""

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

WHOLE = frozenset({"smallint", "integer", "bigint", "oid"})
FLOATING = frozenset({"real", "double precision"})

NULL = "null"
_TO_ESCAPE = r'[\x00-\x1f"\\]'
_NUMBER = r"^-?[0-9]"

ToJson = Callable[[pa.StringArray], pa.StringArray]


def converter(type_: str) -> ToJson:
    """Return what turns a column of this type into JSON. NULL becomes `null`, so that no value of the answer is null."""
    if type_ in WHOLE:
        return _as_it_is
    if type_ in FLOATING:
        return _floating
    if type_ == "boolean":
        return _boolean
    return quoted


def quoted(values: pa.StringArray) -> pa.StringArray:
    """Return each value as a JSON string."""
    needs = pc.match_substring_regex(values, _TO_ESCAPE)
    if pc.any(needs).as_py():
        return _escaped(values, needs)
    return pc.fill_null(pc.binary_join_element_wise('"', values, '"', ""), NULL)


def _escaped(values: pa.StringArray, needs: pa.BooleanArray) -> pa.StringArray:
    """As `quoted`, where some values hold what JSON wants escaped."""
    numbers = np.flatnonzero(pc.fill_null(needs, False).to_numpy(zero_copy_only=False))
    written = pa.array([json.dumps(each, ensure_ascii=False) for each in values.take(pa.array(numbers)).to_pylist()])
    plain = pc.fill_null(pc.binary_join_element_wise('"', values, '"', ""), NULL)
    return pc.replace_with_mask(plain, pc.fill_null(needs, False), written)


def _as_it_is(values: pa.StringArray) -> pa.StringArray:
    return pc.fill_null(values, NULL)


def _floating(values: pa.StringArray) -> pa.StringArray:
    numeric = pc.match_substring_regex(values, _NUMBER)
    if pc.all(numeric).as_py() is not False:
        return pc.fill_null(values, NULL)
    return pc.fill_null(pc.if_else(numeric, values, quoted(values)), NULL)


def _boolean(values: pa.StringArray) -> pa.StringArray:
    return pc.fill_null(pc.if_else(pc.equal(values, "t"), "true", "false"), NULL)
