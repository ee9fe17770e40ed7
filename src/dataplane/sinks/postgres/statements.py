"""The statements that write one table, made once for each shape of it and kept as bytes.

In flows a `TableSchema` whose table at the destination was checked; out flow statements for single rows, with one text
parameter for each value, and for many rows, which go through a temporary staging table. Pure.

The staging table has the columns' types at the destination and no constraint, and a column `pm$step` that says which of
the statements takes a row, so one COPY carries the deletes, the upserts and each group of partial updates. Joins of the
two are always made through the destination's index (the session forbids the other ways), whatever statistics say.
"""

from collections.abc import Sequence
from functools import lru_cache

from psycopg import sql

from contracts.backfilling import Condition
from dataplane.batch import KeyRange, TableSchema
from dataplane.conditions import clause
from dataplane.sinks.postgres.tables import Equality

STEP = "pm$step"
DELETE_STEP = 0
UPSERT_STEP = 1
UPDATE_STEPS = 2
"""The first of the partial updates' steps."""

NAME_BYTES_MAX = 63


class TableStatements:
    """Everything that is said to the server about one shape of one table. Columns are named by their number.

    `stage` is the name of the table's staging table; `equality` says how the key's columns are compared.
    """

    def __init__(self, table: TableSchema, stage: str, equality: Equality) -> None:
        self.table = table
        self._equality = equality
        self._name = sql.Identifier(table.schema, table.name)
        self._stage = sql.Identifier("pg_temp", stage)
        self._key = [number for number, column in enumerate(table.columns) if column.key]
        self._rest = [number for number, column in enumerate(table.columns) if not column.key]
        self.name = _bytes(self._name)
        self.upsert_row = self._upsert(self._places(range(len(table.columns)), "VALUES ({})"))
        self.delete_row = _bytes(
            sql.SQL("DELETE FROM {} WHERE {}").format(self._name, self._matches(range(1, len(self._key) + 1)))
        )
        self.copy = _bytes(
            sql.SQL("COPY {} ({}) FROM STDIN").format(self._name, self._columns(range(len(table.columns))))
        )
        self.make_stage = _bytes(
            sql.SQL(
                "CREATE TEMPORARY TABLE {} ON COMMIT DELETE ROWS AS SELECT 0 AS {}, {} FROM {} WITH NO DATA"
            ).format(sql.Identifier(stage), sql.Identifier(STEP), self._columns(range(len(table.columns))), self._name)
        )
        self.drop_stage = _bytes(sql.SQL("DROP TABLE IF EXISTS {}").format(self._stage))
        self.clear_stage = _bytes(sql.SQL("TRUNCATE TABLE {}").format(self._stage))
        self.copy_stage = _bytes(
            sql.SQL("COPY {} ({}, {}) FROM STDIN").format(
                self._stage, sql.Identifier(STEP), self._columns(range(len(table.columns)))
            )
        )
        self.delete_staged = _bytes(
            sql.SQL("DELETE FROM {} AS t USING {} AS s WHERE s.{} = 0 AND {}").format(
                self._name, self._stage, sql.Identifier(STEP), self._joined()
            )
        )
        self.upsert_staged = self._upsert(
            sql.SQL("SELECT {} FROM {} WHERE {} = 1").format(
                self._columns(range(len(table.columns))), self._stage, sql.Identifier(STEP)
            )
        )

    @lru_cache(maxsize=200)  # noqa: B019  # one object lives for each shape of a table, as long as the session
    def update_row(self, columns: tuple[int, ...]) -> bytes:
        """Set `columns` of the row with a key. Parameters: the new values, then the key."""
        values = self._assignments(columns, [sql.SQL(f"${place + 1}") for place in range(len(columns))])
        key = self._matches(range(len(columns) + 1, len(columns) + len(self._key) + 1))
        return _bytes(sql.SQL("UPDATE {} SET {} WHERE {}").format(self._name, values, key))

    @lru_cache(maxsize=200)  # noqa: B019
    def update_staged(self, columns: tuple[int, ...]) -> bytes:
        """Set `columns` of the rows that are staged under the step of the only parameter."""
        values = self._assignments(columns, [sql.Identifier("s", self.table.columns[n].name) for n in columns])
        return _bytes(
            sql.SQL("UPDATE {} AS t SET {} FROM {} AS s WHERE s.{} = $1 AND {}").format(
                self._name, values, self._stage, sql.Identifier(STEP), self._joined()
            )
        )

    def delete_range(
        self, only: KeyRange, where: Sequence[Condition] = (), spared_by: str | None = None
    ) -> tuple[bytes, list[bytes | None]]:
        """Delete the rows of a range of keys that match `where`. Return the statement and its parameters.

        Rows whose keys have dead letters of the pipeline `spared_by` stay: what comes for them waits behind these.
        """
        keys = self._columns(self._key)
        conditions: list[sql.Composable] = []
        parameters: list[bytes | None] = []
        for operator, bound in ((">", only.after), ("<=", only.upto)):
            if bound is None:
                continue
            places = sql.SQL(", ").join(sql.SQL(f"${len(parameters) + 1 + place}") for place in range(len(bound)))
            conditions.append(sql.SQL("({}) {} ({})").format(keys, sql.SQL(operator), places))
            parameters += [value.encode() for value in bound]
        for condition in where:
            held = [sql.SQL(f"${len(parameters) + 1 + place}") for place in range(len(condition.values))]
            conditions.append(clause(condition, held))
            parameters += [value.encode() for value in condition.values]
        if spared_by is not None:
            first = len(parameters) + 1
            conditions += [self._has_no_letter(column, first) for column in ("key", "old_key")]
            parameters += [each.encode() for each in (spared_by, self.table.schema, self.table.name)]
        restricted = sql.SQL(" WHERE {}").format(sql.SQL(" AND ").join(conditions)) if conditions else sql.SQL("")
        return _bytes(sql.SQL("DELETE FROM {}{}").format(self._name, restricted)), parameters

    def _has_no_letter(self, column: str, first: int) -> sql.Composed:
        """Look a row's key up among the letters'; parameters from `first` on: pipeline, schema and table."""
        key = [self.table.columns[number] for number in self._key]
        named = [sql.Identifier("k", each.name) for each in key]
        # Types are the server's own words. The keys are there as text, and a NULL among them would spare every row.
        return sql.SQL(
            "({keys}) NOT IN (SELECT {named} FROM pointsman.dead_letters AS l, jsonb_to_record(l.{column})"
            " AS k ({typed}) WHERE l.pipeline_id = ${} AND l.table_schema = ${} AND l.table_name = ${} AND {there})"
        ).format(
            *(sql.SQL(str(first + place)) for place in range(3)),
            keys=self._columns(self._key),
            named=sql.SQL(", ").join(named),
            typed=sql.SQL(", ").join(
                sql.SQL("{} {}").format(sql.Identifier(each.name), sql.SQL(each.type)) for each in key
            ),
            column=sql.Identifier(column),
            there=sql.SQL(" AND ").join(sql.SQL("{} IS NOT NULL").format(each) for each in named),
        )

    def probe(self, column: int) -> bytes:
        """Put one value into the staging table: fails if the column's type refuses it."""
        return _bytes(sql.SQL("INSERT INTO {} ({}) VALUES ($1)").format(self._stage, self._columns([column])))

    def _upsert(self, rows: sql.Composable) -> bytes:
        keys = self._columns(self._key)
        action: sql.Composable = sql.SQL("NOTHING")
        if self._rest:
            values = [sql.Identifier("excluded", self.table.columns[number].name) for number in self._rest]
            action = sql.SQL("UPDATE SET {}").format(self._assignments(self._rest, values))
        return _bytes(
            sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE {} ON CONFLICT ({}) DO {}").format(
                self._name, self._columns(range(len(self.table.columns))), rows, keys, action
            )
        )

    def _columns(self, numbers: Sequence[int]) -> sql.Composed:
        return sql.SQL(", ").join(sql.Identifier(self.table.columns[number].name) for number in numbers)

    def _assignments(self, columns: Sequence[int], values: Sequence[sql.Composable]) -> sql.Composed:
        return sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(self.table.columns[number].name), value)
            for number, value in zip(columns, values, strict=True)
        )

    def _matches(self, places: Sequence[int]) -> sql.Composed:
        return sql.SQL(" AND ").join(
            self._equal(self.table.columns[number].name, sql.Identifier(self.table.columns[number].name), parameter)
            for number, parameter in zip(self._key, (sql.SQL(f"${place}") for place in places), strict=True)
        )

    def _joined(self) -> sql.Composed:
        names = [self.table.columns[number].name for number in self._key]
        return sql.SQL(" AND ").join(
            self._equal(name, sql.Identifier("t", name), sql.Identifier("s", name)) for name in names
        )

    def _equal(self, name: str, left: sql.Composable, right: sql.Composable) -> sql.Composed:
        schema, operator = self._equality[name]
        return sql.SQL("{} OPERATOR({}.{}) {}").format(left, sql.Identifier(schema), sql.SQL(operator), right)

    @staticmethod
    def _places(numbers: Sequence[int], frame: str) -> sql.Composed:
        places = sql.SQL(", ").join(sql.SQL(f"${number + 1}") for number in numbers)
        return sql.SQL(frame).format(places)


def _bytes(statement: sql.Composable) -> bytes:
    return statement.as_bytes(None)
