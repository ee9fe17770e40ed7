"""Write the golden files of messages that have none yet: `uv run python -m tests.contracts.write_golden_files`.

A file that exists is what some node or control plane out there speaks. It is never changed: the script refuses, and a
message that has to change becomes a new contract version.
"""

import inspect
import sys
from enum import Enum
from pathlib import Path

import msgspec
from tests.contracts.examples import MESSAGES, as_file, sealed

from contracts import backfilling, checks, codes, reconciling, slots, v2

GOLDEN = Path(__file__).parent / "golden"


def expected_files() -> dict[Path, bytes]:
    """Return every golden file, and what it holds if it is written today."""
    files: dict[Path, bytes] = {}
    for contract, messages in MESSAGES.items():
        folder = GOLDEN / f"v{contract}"
        files |= {folder / f"{name}.json": as_file(message) for name, message in messages.items()}
        files |= {folder / f"{name}.txt": envelope + b"\n" for name, envelope in sealed(contract).items()}
    return files


def enums() -> dict[str, type[Enum]]:
    """Return every closed set of words that messages use, by its name."""
    found = [
        each
        for module in (codes, checks, slots, v2, reconciling, backfilling)
        for _, each in inspect.getmembers(module, inspect.isclass)
    ]
    return {each.__name__: each for each in found if issubclass(each, Enum) and each is not Enum}


def released_words() -> dict[str, list[str]]:
    """Return the words of each enum that have ever been released, in the order of their release."""
    path = GOLDEN / "words.json"
    return msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]]) if path.exists() else {}


def _words() -> bytes:
    words = released_words()
    for name, enum in enums().items():
        known = words.setdefault(name, [])
        known.extend(each.value for each in enum if each.value not in known)
    return msgspec.json.format(msgspec.json.encode(words), indent=2) + b"\n"


def main() -> int:
    """Write what is missing. Return 1 and write nothing when a file that exists would change."""
    files = expected_files()
    changed = [path for path, content in files.items() if path.exists() and path.read_bytes() != content]
    if changed:
        for path in changed:
            print(f"refused: {path.relative_to(GOLDEN)} is released and would change", file=sys.stderr)
        return 1
    for path, content in files.items():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            print(f"new: {path.relative_to(GOLDEN)}")
    (GOLDEN / "words.json").write_bytes(_words())
    return 0


if __name__ == "__main__":
    sys.exit(main())
