"""Every source that a worker can be given obeys the law of sources."""

import pytest
from tests.conftest import Database
from tests.dataplane.laws.source_law import SourceLaw
from tests.dataplane.sources.origins import PostgresOrigin

from contracts.v2 import PostgresConfig
from dataplane.sources import SOURCES


class TestPostgres(SourceLaw):
    """A database of PostgreSQL 18."""

    @pytest.fixture
    def origin(self, database: Database) -> PostgresOrigin:
        return PostgresOrigin(database)


MEMBERS = {PostgresConfig: TestPostgres}


def test_every_source_of_the_registry_is_held_to_the_law() -> None:
    """A new type needs a class here."""
    assert set(MEMBERS) == set(SOURCES)
