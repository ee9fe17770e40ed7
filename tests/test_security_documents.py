"""What the security pages promise is held by tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = re.compile(r"`(test_[a-z0-9_]+)`")
DEFINED = re.compile(r"^ *(?:async )?def (test_[a-z0-9_]+)\(", re.MULTILINE)


def _tests() -> set[str]:
    return {name for path in (ROOT / "tests").rglob("test_*.py") for name in DEFINED.findall(path.read_text())}


@pytest.mark.parametrize("page", ["security.md", "asvs.md"])
def test_every_test_that_a_security_page_names_exists(page: str) -> None:
    """A promise whose test was renamed or taken away is no promise any more."""
    named = NAMED.findall((ROOT / "docs" / page).read_text())
    assert len(named) > 10
    assert sorted(set(named) - _tests()) == []


def test_every_item_of_the_asvs_is_shown_or_said_to_be_missing() -> None:
    """No row is left open."""
    rows = [line for line in (ROOT / "docs" / "asvs.md").read_text().splitlines() if line.startswith("| v5.0.0-")]
    assert len(rows) > 30
    assert len({row.split("|")[1] for row in rows}) == len(rows)
    assert [row for row in rows if not NAMED.search(row) and "not met" not in row] == []
