"""Hints name the next command, so each command that a hint names has to exist."""

import re

import click
import pytest

from contracts.codes import EXPLANATIONS, Code
from contracts.diagnosis import PLACES
from contracts.meanings import MEANINGS
from pointsman.cli import kinds
from pointsman.cli.root import root
from pointsman.problems import CODES

COMMAND = re.compile(r"`pointsman ([^`]+)`")
HINTS = {
    **{code.value: EXPLANATIONS[code].hint for code in Code},
    **{code: hint for code, (_, hint) in CODES.items()},
    **{
        f"{check.value}-{word.value}": words.hint.format_map(dict.fromkeys(PLACES, "NAME"))
        for check, meaning in MEANINGS.items()
        for word, words in {**meaning.outcomes, **meaning.states}.items()
    },
}


def unknown_part(line: str) -> str | None:
    """Return the first word or option of `line` that the command line does not know."""
    command: click.Command = root
    words = line.split()
    while words and isinstance(command, click.Group) and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    if isinstance(command, click.Group) and (not words or not words[0].startswith("-")):
        return words[0] if words else line
    options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    spellings = {spelling for kind in kinds.KINDS for spelling in kind.spellings}
    choices = [parameter.type.choices for parameter in command.params if isinstance(parameter.type, click.Choice)]
    spellings |= {str(choice) for each in choices for choice in each}
    for word in words:
        if word.startswith("-") and word not in options:
            return word
        if word.islower() and not word.startswith("-") and word not in spellings:
            return word
    return None


@pytest.mark.parametrize("code", [code for code, hint in HINTS.items() if COMMAND.search(hint)])
def test_a_command_that_a_hint_names_exists(code: str) -> None:
    """Verb, kind and options are those of the command line as it is."""
    assert [unknown_part(line) for line in COMMAND.findall(HINTS[code]) if unknown_part(line)] == []


@pytest.mark.parametrize("line", ["fly pipeline NAME", "restart railway NAME", "delete pipeline NAME --now", "node"])
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    """The check above tells what exists from what does not."""
    assert unknown_part(line) is not None
