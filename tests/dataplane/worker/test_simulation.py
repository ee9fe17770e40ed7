"""Lives of a pipeline from seeds (`simulation`): whatever happens, no row is lost, doubled or halved.

A failing run names its seed; `test_any_seed_ends_with_equal_rows[KIND-SEED]` replays it.
"""

import pytest
from tests.dataplane.worker import virtual
from tests.dataplane.worker.simulation import HALVES, simulate

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", sorted(HALVES))
def test_any_seed_ends_with_equal_rows(kind: str, seed: int) -> None:
    """In one process or with a buffer between: killed, frozen, doubled, taken over and failing at any step."""
    virtual.run(simulate(seed, HALVES[kind]))
