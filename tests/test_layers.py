"""The layers of the house, as rules that a tool checks."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_planes_do_not_know_each_other() -> None:
    """Every import contract of pyproject.toml is kept: the planes meet in the contracts only."""
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache", "--config", "pyproject.toml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout
