"""The last look before rows leave a worker's source side: does every column go in a way that the customer's policy allows?

In flow the schemas of batches after the transforms; a column that may only leave masked, and does not, ends the session before
a row of its table has gone anywhere. So a column that appears at the source later is held to the same rules. Pure.
"""

from collections.abc import Sequence

from contracts.v2 import PipelineDocument
from dataplane.batch import ChangeSet, TableSchema
from dataplane.failures import Permanent
from dataplane.policy import MaskRule, unmasked


class Guard:
    """Holds the tables of one pipeline to the policy's rules for columns."""

    def __init__(self, rules: Sequence[MaskRule], document: PipelineDocument) -> None:
        self._rules = rules
        self._document = document
        self._passed: dict[str, TableSchema] = {}

    def check(self, change: ChangeSet) -> None:
        """Look at the schemas of a set that has passed the transforms.

        Raises:
            Permanent: POLICY_MASK_MISSING, with table and column.
        """
        if not self._rules:
            return
        for item in change.items:
            if self._passed.get(item.table.table) != item.table:
                self.look(item.table)
                self._passed[item.table.table] = item.table

    def look(self, table: TableSchema) -> None:
        """Look at a table as it will leave; a session does so for each before the first row, and for an idle table too.

        Raises:
            Permanent: POLICY_MASK_MISSING, with table and column.
        """
        columns = [(table.table, column.name) for column in table.columns]
        for violation in unmasked(self._rules, self._document, columns):
            raise Permanent(violation.code, violation.what, table=violation.table, column=violation.column)
