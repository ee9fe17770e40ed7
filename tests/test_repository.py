"""What lies in the repository: it runs anywhere, and says how."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# In two halves, so that this file is not its own first finding.
REGISTRIES = re.compile(
    "|".join(
        re.escape(".".join(parts))
        for parts in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("registry", "npmjs"),
            ("crates", "io"),
            ("deb", "debian", "org"),
            ("repo1", "maven", "org"),
            ("proxy", "golang", "org"),
        )
    )
)
MACHINE_PATHS = re.compile(r"(?<![\w.~$})-])/(?:root|work|workspace|home|Users)/\w")
PROMISED = ("pip install uv && uv run pointsman demo", "uv run just test")


def _tracked() -> Iterator[tuple[str, str]]:
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        try:
            yield name, path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue


@pytest.mark.parametrize("foreign", [REGISTRIES, MACHINE_PATHS], ids=["a registry's host", "a path of one machine"])
def test_no_file_names_what_only_one_place_has(foreign: re.Pattern[str]) -> None:
    """Registries are reached as the user's tools are set up, and nothing depends on where a checkout lies."""
    found = [f"{name}: {match.group()}" for name, text in _tracked() for match in foreign.finditer(text)]
    assert found == []


def test_the_readme_names_the_two_commands() -> None:
    """A stranger finds the demo and the tests on the first page."""
    readme = (ROOT / "README.md").read_text()
    assert [command for command in PROMISED if command not in readme] == []


def test_every_package_folder_explains_itself() -> None:
    """Each module of the product opens with a docstring; `ls` and the first lines are the map."""
    silent = [
        name
        for name, text in _tracked()
        if name.startswith("src/") and name.endswith(".py") and not text.startswith(('"""', 'r"""'))
    ]
    assert silent == []
