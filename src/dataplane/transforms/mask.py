"""Replaces the values of columns: by `***`, or by a keyed hash under which equal values stay equal.

Pure: batches go in and come out, the key of the hash is given to the constructor. Each different value is hashed once
for a batch. NULL stays NULL and an unchanged value stays unchanged, so the rest of a pipeline never notices.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from contracts.codes import Code
from contracts.v2 import MaskMethod
from dataplane.batch import ChangeBatch, TableSchema
from dataplane.failures import Permanent
from dataplane.postgres import Revealable
from dataplane.transforms.columns import positions

REDACTED = "***"
TEXT_TYPE = "text"
TEXT_TYPE_OID = 25


class Mask:
    """Masks `columns` of `table`. With `MaskMethod.HASH` a value becomes its HMAC-SHA-256 under `secret`, in hex.

    Raises:
        Permanent: a hash was asked for without a secret.
    """

    def __init__(self, table: str, columns: Sequence[str], method: MaskMethod, secret: Revealable | None) -> None:
        self.table = table
        self._columns = tuple(columns)
        self._method = method
        if method is MaskMethod.HASH and secret is None:
            raise Permanent(Code.DOCUMENT_REFUSED, "a mask by hash needs a secret", table=table)
        self._secret = secret

    def schema(self, table: TableSchema) -> TableSchema:
        """Return the schema with the masked columns as text."""
        masked = positions(table, self._columns)
        return replace(
            table,
            columns=tuple(
                column._replace(type=TEXT_TYPE, type_oid=TEXT_TYPE_OID, missing=self._shown(column.missing))
                if number in masked
                else column
                for number, column in enumerate(table.columns)
            ),
        )

    def apply(self, batch: ChangeBatch) -> ChangeBatch:
        """Return the batch with the columns masked."""
        masked = positions(batch.table, self._columns)
        columns = [
            self._masked(column) if number in masked else column for number, column in enumerate(batch.rows.columns)
        ]
        rows = pa.record_batch(columns, names=batch.rows.schema.names)
        return replace(batch, table=self.schema(batch.table), rows=rows)

    def _masked(self, column: pa.Array) -> pa.Array:
        unique = column.dictionary_encode()
        shown = [self._shown(word) for word in unique.dictionary.to_pylist()]
        return pa.array(shown, type=pa.string()).take(unique.indices)

    def _shown(self, word: str | None) -> str | None:
        if word is None:
            return None
        if self._method is MaskMethod.REDACT:
            return REDACTED
        assert self._secret is not None
        return hmac.digest(self._secret.reveal().encode(), word.encode(), hashlib.sha256).hex()
