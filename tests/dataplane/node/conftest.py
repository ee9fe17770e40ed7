"""A data plane without nodes, and a shop whose rows they carry."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import Database
from tests.dataplane.node.plane import Plane
from tests.dataplane.node.shop import Shop


@pytest.fixture
def plane(folder: Path) -> Iterator[Plane]:
    made = Plane(folder)
    made.leaf.start()
    yield made
    made.close()


@pytest.fixture
def shop(plane: Plane, make_database: Callable[[str], Database]) -> Shop:
    return Shop(plane, make_database)
