"""Random tables and values for the test of types: every type of PostgreSQL with the values that others get wrong.

A strategy gives a value as an SQL expression. What it means is for the server to say: the test compares what arrives with
what the server itself gives to a client, so nothing here knows how a value is written.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Values = st.SearchStrategy[str]

TYPES_SQL = """
    CREATE TYPE public.mood AS ENUM ('sad', 'o''k, so', '"', 'NULL', '');
    CREATE DOMAIN public.positive AS integer CHECK (VALUE > 0);
    CREATE DOMAIN public.grid AS numeric[] CHECK (array_ndims(VALUE) < 3);
    CREATE TYPE public.pair AS (a integer, "B b" text);
    CREATE TYPE public.nest AS (p public.pair, ps public.pair[], m public.mood);
"""
EXTENSIONS = ("citext", "hstore", "ltree", "cube", "seg", "isn", "vector")

INFINITE_INTERVAL_VERSION = 17


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def ints(low: int, high: int) -> Values:
    edges = [number for number in (low, high, 0, -1) if low <= number <= high]
    return st.one_of(st.sampled_from(edges), st.integers(low, high)).map(lambda n: f"({n})")


def texts(limit: int, alphabet: str | None = None) -> Values:
    letters = st.sampled_from(alphabet) if alphabet else st.characters(codec="utf-8", exclude_characters="\0")
    odd = [text for text in ("", "NULL", "\\N", "\\.", "a\tb\nc\r\\", '"', "{}", " x ", "ünï🚂") if len(text) <= limit]
    return st.one_of(st.sampled_from(odd), st.text(letters, max_size=limit)).map(quoted)


def floats(form: str) -> Values:
    bits = {"f": "I", "d": "Q"}[form]

    def written(number: int) -> str:
        (value,) = struct.unpack(f"<{form}", struct.pack(f"<{bits}", number))
        return quoted(repr(value))

    special = ["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "0.1", "1e-45" if form == "f" else "5e-324"]
    return st.one_of(st.sampled_from(special), st.integers(0, 2 ** (32 if form == "f" else 64) - 1).map(written))


def numerics() -> Values:
    digits = st.tuples(st.integers(-(10**40), 10**40), st.integers(-60, 60)).map(lambda n: f"'{n[0]}e{n[1]}'")
    huge = st.integers(1, 9).map(lambda n: f"({n} || repeat('7', 9000) || '.' || repeat('0', 3000))::numeric")
    return st.one_of(st.sampled_from(["'NaN'", "'Infinity'", "'-Infinity'", "1.10", "1.1", "'-0.000'"]), digits, huge)


def moments(kind: str) -> Values:
    special = ["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'20000-01-01'", "'0001-01-01'", "'9999-12-31'"]
    if kind == "date":
        far = st.integers(-2_451_000, 2_145_000_000).map(lambda n: f"(date '2000-01-01' + ({n}))")
        return st.one_of(st.sampled_from(special), far)
    special += ["'294276-12-31 23:59:59.999999'", "'4713-01-01 00:00:00 BC'"]
    micros = st.integers(-211_000_000_000_000_000, 9_000_000_000_000_000_000)
    far = micros.map(lambda n: f"({kind} '2000-01-01 00:00:00' + interval '1 microsecond' * ({n}))")
    return st.one_of(st.sampled_from(special), far)


def times(*, zone: bool) -> Values:
    clock = st.tuples(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999_999)).map(
        lambda t: "{:02}:{:02}:{:02}.{:06}".format(*t)
    )
    clock = st.one_of(st.sampled_from(["24:00:00", "00:00:00"]), clock)
    if not zone:
        return clock.map(quoted)
    zones = st.tuples(st.sampled_from("+-"), st.integers(0, 15), st.integers(0, 59), st.integers(0, 59)).map(
        lambda z: "{}{:02}:{:02}:{:02}".format(*z)
    )
    return st.tuples(clock, zones).map(lambda both: quoted(both[0] + both[1]))


def intervals(version: int) -> Values:
    parts = st.tuples(
        st.integers(-2_000_000_000, 2_000_000_000),
        st.integers(-2_000_000_000, 2_000_000_000),
        st.integers(-(2**62), 2**62),
    ).map(lambda p: f"'{p[0]} mons {p[1]} days {p[2]} microseconds'")
    special = ["'0'", "'1 year -2 months 3 days -04:05:06.789'", "'-1 day +00:00:00.000001'", "'-1 month'"]
    if version >= INFINITE_INTERVAL_VERSION:
        special += ["'infinity'", "'-infinity'"]
    return st.one_of(st.sampled_from(special), parts)


def jsons(*, binary: bool) -> Values:
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
    )
    trees = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('aB"\\é', max_size=3), inner, max_size=3),
    )
    special = ['{"b": 1, "b": 2, "a":  12345678901234567890.10}', "null", '"x\\ty"', " [ ] "]
    if not binary:
        special += ['"\\u0000"', '{"z": 1,\n "a": "\\u0041"}']
    spaced = st.tuples(trees, st.sampled_from([None, 1])).map(lambda t: json.dumps(t[0], indent=t[1]))
    return st.one_of(st.sampled_from(special), spaced).map(quoted)


def ranges(name: str, bounds: Values) -> Values:
    """Ranges of a type; bounds that stand the wrong way round are turned by the server."""
    edges = st.one_of(st.just("NULL"), bounds)
    forms = st.sampled_from(["[]", "[)", "(]", "()"])
    element = {"int4": "integer", "num": "numeric", "ts": "timestamp", "tstz": "timestamptz", "date": "date"}[name]

    def made(parts: tuple[str, str, str]) -> str:
        low, high = (f"({edge})::{element}" for edge in parts[:2])
        ordered = f"{low} IS NULL OR {high} IS NULL OR {low} <= {high}"
        return (
            f"CASE WHEN {ordered} THEN {name}range({low}, {high}, '{parts[2]}')"
            f" ELSE {name}range({high}, {low}, '{parts[2]}') END"
        )

    return st.one_of(st.just("'empty'"), st.just("'(,)'"), st.tuples(edges, edges, forms).map(made))


def arrays(element: str, values: Values) -> Values:
    """Arrays of one or two dimensions, with elements that are NULL and lower bounds that are not 1."""
    cells = st.one_of(st.just("NULL"), values.map(lambda value: f"({value})::{element}"))
    flat = st.lists(cells, min_size=1, max_size=4)
    one = flat.map(lambda row: f"ARRAY[{', '.join(row)}]::{element}[]")
    two = flat.map(lambda row: f"ARRAY[[{', '.join(row)}], [{', '.join(reversed(row))}]]::{element}[]")
    moved = st.tuples(flat, st.integers(-5, 5)).map(
        lambda both: (
            f"('[{both[1]}:{both[1] + len(both[0]) - 1}]=' || ARRAY[{', '.join(both[0])}]::{element}[]::text)"
            f"::{element}[]"
        )
    )
    return st.one_of(st.just("'{}'"), one, two, moved)


def points() -> Values:
    number = st.one_of(st.integers(-9, 9), st.floats(-1e6, 1e6))
    return st.tuples(number, number).map(
        lambda p: f"point({quoted(repr(float(p[0])))}::float8, {quoted(repr(float(p[1])))}::float8)"
    )


def shapes() -> Mapping[str, Values]:
    return {
        "point": points(),
        "lseg": st.tuples(points(), points()).map(lambda p: f"lseg({p[0]}, {p[1]})"),
        "box": st.tuples(points(), points()).map(lambda p: f"box({p[0]}, {p[1]})"),
        "path": st.sampled_from(["'[(0,0),(1,1)]'", "'((0,0),(1,1),(2,0))'"]),
        "polygon": st.tuples(points(), points()).map(lambda p: f"polygon(box({p[0]}, {p[1]}))"),
        "circle": points().map(lambda p: f"circle({p}, 2.5)"),
        "line": st.sampled_from(["'{1,-1,0}'", "'{1e10,2,-3.5}'"]),
    }


def of_system() -> Mapping[str, Values]:
    """Types that are only text to us."""
    byte = st.integers(0, 255)
    address = st.tuples(byte, byte, byte, byte).map(lambda a: "{}.{}.{}.{}".format(*a))
    return {
        "inet": st.one_of(st.sampled_from(["'::1'", "'fe80::1/64'"]), address.map(quoted)),
        "cidr": address.map(lambda a: f"network(inet '{a}/16')::cidr"),
        "macaddr": st.lists(byte, min_size=6, max_size=6).map(lambda b: quoted(bytes(b).hex())),
        "macaddr8": st.lists(byte, min_size=8, max_size=8).map(lambda b: quoted(bytes(b).hex())),
        "uuid": st.uuids().map(lambda u: quoted(str(u))),
        "bit(3)": st.integers(0, 7).map(lambda n: f"B'{n:03b}'"),
        "bit varying": st.text("01", max_size=70).map(lambda b: f"B'{b}'"),
        "oid": st.integers(0, 2**32 - 1).map(lambda n: f"'{n}'"),
        "regclass": st.sampled_from(["'pg_class'", "'pg_catalog.pg_type'", "'-'"]),
        "regtype": st.sampled_from(["'integer'", "'public.mood'"]),
        "pg_lsn": st.integers(0, 2**64 - 1).map(lambda n: f"'{n >> 32:X}/{n & 0xFFFFFFFF:X}'"),
        "xid8": st.integers(0, 2**64 - 1).map(lambda n: f"'{n}'"),
        "pg_snapshot": st.sampled_from(["'10:20:10,14,15'", "'1:1:'"]),
        "jsonpath": st.sampled_from(["'$.a[*] ? (@.b > 1)'", "'strict $'"]),
        "tsvector": texts(10, "ab 'c\\:").map(lambda t: f"to_tsvector('simple', {t})"),
        "tsquery": st.sampled_from(["'fat & !rat'", "'a <2> b | ''it''''s'':A*'", "''"]),
        "tid": st.sampled_from(["'(0,1)'", "'(4294967295,65535)'"]),
        # Only a server that was built with libxml has it, which Debian's is.
        "xml": st.sampled_from(["'<a b=\"1\">&lt;</a>'", "'text only'"]),
    }


def of_extensions(installed: set[str]) -> Mapping[str, Values]:
    pairs = st.dictionaries(
        st.text('ab"\\=>,é', min_size=1, max_size=4), st.none() | st.text("xN\"'\\ ", max_size=4), max_size=3
    )

    def stored(pairs: dict[str, str | None]) -> str:
        keys = ", ".join(quoted(key) for key in pairs)
        values = ", ".join("NULL" if value is None else quoted(value) for value in pairs.values())
        return f"public.hstore(ARRAY[{keys}]::text[], ARRAY[{values}]::text[])"

    known: Mapping[str, tuple[str, Values]] = {
        "citext": ("public.citext", texts(8)),
        "hstore": ("public.hstore", pairs.map(stored)),
        "ltree": ("public.ltree", st.sampled_from(["'Top.Science'", "''"])),
        "cube": ("public.cube", st.sampled_from(["'(1,2),(3,4)'", "'(0.1)'"])),
        "seg": ("public.seg", st.sampled_from(["'1.5 .. 2.50'", "'~6.5'", "'..3'"])),
        "isn": ("public.isbn13", st.sampled_from(["'978-0-393-04002-9'"])),
        "vector": ("public.vector(2)", st.sampled_from(["'[1,2.5]'", "'[0,-1e-10]'"])),
    }
    return {type_: values for name, (type_, values) in known.items() if name in installed}


def kinds(version: int, installed: set[str]) -> dict[str, Values]:
    """Every type that the server has, with its values. `installed` names its extensions, and xml if it has that."""
    small = ints(-100, 100)
    pair = st.tuples(st.one_of(st.just("NULL"), small), st.one_of(st.just("NULL"), texts(5))).map(
        lambda p: f"ROW({p[0]}, {p[1]})::public.pair"
    )
    moods = st.sampled_from(["'sad'", "'o''k, so'", "'\"'", "'NULL'", "''"])
    single: dict[str, Values] = {
        "smallint": ints(-32768, 32767),
        "integer": ints(-(2**31), 2**31 - 1),
        "bigint": ints(-(2**63), 2**63 - 1),
        "numeric": numerics(),
        "numeric(10,2)": st.one_of(
            st.just("'NaN'"), st.integers(-(10**10) + 1, 10**10 - 1).map(lambda n: f"({n} * 0.01)")
        ),
        "real": floats("f"),
        "double precision": floats("d"),
        "money": st.integers(-(2**62), 2**62).map(lambda n: f"({n} * 0.01)::numeric::money"),
        "boolean": st.sampled_from(["true", "false"]),
        "text": texts(200),
        "character varying(20)": texts(20),
        "character(5)": texts(5),
        "name": texts(12),
        '"char"': st.sampled_from(["''", "'x'", "' '", "'\\'"]),
        "bytea": st.binary(max_size=40).map(lambda b: f"'\\x{b.hex()}'"),
        "date": moments("date"),
        "timestamp without time zone": moments("timestamp"),
        "timestamp with time zone": moments("timestamptz"),
        "time without time zone": times(zone=False),
        "time with time zone": times(zone=True),
        "interval": intervals(version),
        "json": jsons(binary=False),
        "jsonb": jsons(binary=True),
        "int4range": ranges("int4", ints(-(2**31), 2**31 - 2)),
        "numrange": ranges("num", st.integers(-(10**20), 10**20).map(str)),
        "tsrange": ranges("ts", moments("timestamp")),
        "tstzrange": ranges("tstz", moments("timestamptz")),
        "daterange": ranges("date", st.integers(-9999, 9999).map(lambda n: f"(date '2000-01-01' + ({n}))")),
        "int4multirange": st.lists(ranges("int4", small), max_size=3).map(
            lambda r: f"int4multirange({', '.join(f'({each})::int4range' for each in r)})"
        ),
        "public.mood": moods,
        "public.positive": ints(1, 2**31 - 1),
        "public.grid": arrays("numeric", numerics()),
        "public.pair": pair,
        "public.nest": st.tuples(pair, arrays("public.pair", pair), moods).map(
            lambda n: f"ROW({n[0]}, {n[1]}, {n[2]})::public.nest"
        ),
        **shapes(),
        **of_system(),
        **of_extensions(installed),
    }
    if "xml" not in installed:
        del single["xml"]
    many = {
        f"{type_}[]": arrays(type_, values) for type_, values in single.items() if not type_.startswith("public.grid")
    }
    return {**single, **many}


@dataclass(frozen=True)
class AnyTable:
    """Columns with their types and whether they are NOT NULL, and rows as SQL expressions."""

    columns: list[tuple[str, bool]]
    rows: list[list[str]]

    def creation(self, name: str) -> str:
        columns = [f"c{at} {type_}{' NOT NULL' if strict else ''}" for at, (type_, strict) in enumerate(self.columns)]
        return f"CREATE TABLE public.{name} ({', '.join(['id integer PRIMARY KEY', *columns])})"

    def insertions(self, name: str) -> list[str]:
        return [
            f"INSERT INTO public.{name} VALUES ({', '.join([str(number), *row])})"
            for number, row in enumerate(self.rows)
        ]


def cast(type_: str, values: Values) -> Values:
    return values.map(lambda value: f"({value})::{type_}")


def tables_of(of: Mapping[str, Values], columns: list[tuple[str, bool]], rows_max: int) -> st.SearchStrategy[AnyTable]:
    """Tables with these columns."""
    row = st.tuples(
        *(
            cast(name, of[name]) if strict else st.one_of(st.just("NULL"), cast(name, of[name]))
            for name, strict in columns
        )
    )
    return st.lists(row.map(list), min_size=1, max_size=rows_max).map(lambda rows: AnyTable(columns, rows))


def tables(of: Mapping[str, Values], columns_max: int, rows_max: int) -> st.SearchStrategy[AnyTable]:
    """Tables with any columns."""
    column = st.tuples(st.sampled_from(sorted(of)), st.booleans())
    return st.lists(column, min_size=1, max_size=columns_max).flatmap(lambda columns: tables_of(of, columns, rows_max))


def drawn(strategy: st.SearchStrategy[AnyTable], count: int) -> list[AnyTable]:
    """Draw so many tables; they are tried together, since each session with a server takes its time."""
    made: list[AnyTable] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def keep(table: AnyTable) -> None:
        made.append(table)

    keep()
    return made
