"""The pages say what the code does."""

import re
from pathlib import Path

import pytest
import yaml
from tests.test_hints import unknown_part

from controlplane import manifests
from pointsman import checks_page, errors_page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_page_of_errors_is_current() -> None:
    """It is made from the codes; `just docs` writes it."""
    assert (ROOT / "docs" / "reference" / "errors.md").read_text() == errors_page.page()


def test_the_page_of_checks_is_current() -> None:
    """It is made from what the doctor looks at; `just docs` writes it."""
    assert (ROOT / "docs" / "reference" / "checks.md").read_text() == checks_page.page()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    """Files that a page links to exist."""
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_exists(page: Path) -> None:
    """Verbs, kinds and options in console examples are those of the command line."""
    lines = re.findall(r"^\$ (?:uv run )?pointsman ([^#|&\n]+)", page.read_text(), re.MULTILINE)
    assert [line for line in lines if unknown_part(_without_values(line))] == []


def _without_values(line: str) -> str:
    """Leave out what follows an option, and names, so that only what the command line itself knows is left."""
    words, kept = line.split(), []
    if words[0] in ("stop", "start"):
        words = words[:1]  # a component follows
    spoken = 3 if words[:2] in (["node", "dlq"], ["node", "ledger"], ["node", "reconcile"], ["node", "policy"]) else 2
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-") or (not before.startswith("-") and len(kept) < spoken and "/" not in word):
            kept.append(word)
    return " ".join(kept)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_document_on_a_page_is_accepted(page: Path) -> None:
    """The API's own parser takes each example."""
    import json

    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        for document in yaml.safe_load_all(block):
            body = json.dumps(document).encode()
            parse = {"Connection": manifests.parse_connection, "Pipeline": manifests.parse_pipeline}[document["kind"]]
            parse(document["name"], body)  # type: ignore[operator]
