"""Codes cross in place of texts, so each can be turned into words that help."""

import re

import pytest

from contracts.codes import EXPLANATIONS, Code, Family, explain


@pytest.mark.parametrize("code", Code, ids=lambda code: code.value)
def test_every_code_says_what_happened_and_what_to_do(code: Code) -> None:
    """Each has a family, a sentence, and a hint that is a sentence too."""
    explanation = explain(code)
    assert isinstance(explanation.family, Family)
    for sentence in (explanation.summary, explanation.hint):
        assert len(sentence) >= 10
        assert sentence[0].isupper() or sentence[0] == "`"
        assert sentence.endswith(".")


def test_no_explanation_is_without_its_code() -> None:
    """The table explains the codes that exist, no more and no fewer."""
    assert set(EXPLANATIONS) == set(Code)


@pytest.mark.parametrize("code", Code, ids=lambda code: code.value)
def test_a_code_is_an_identifier_of_its_own_name(code: Code) -> None:
    """The value that crosses is the name in lower case, at most 40 long."""
    assert code.value == code.name.lower()
    assert re.fullmatch("[a-z][a-z_]{1,39}", code.value)
