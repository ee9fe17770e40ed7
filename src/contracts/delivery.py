"""What a destination does with a row that it refuses, and with a table whose shape changes at the source.

The words of `sink` in a pipeline's document, and the numbers that go with them. A person writes them, the control plane
carries them, and the node's sink obeys. Add a word here, never reuse or rename one: golden files hold their values.
"""

from enum import Enum
from typing import Annotated

from msgspec import Meta

DEAD_LETTERS_DEFAULT = 1_000
DEAD_LETTERS_LIMIT = 1_000_000


class OnRefused(Enum):
    """What comes of a row that the destination refuses for good."""

    STOP = "stop"
    """The pipeline stops before it, and says which table and column."""
    DEAD_LETTER = "dead_letter"
    """It lies beside the destination's tables with its cause, and so do later changes of its key; the rest goes on."""


class OnSchemaChange(Enum):
    """What comes of a table whose shape changes at the source."""

    PROPAGATE = "propagate"
    """New columns are added at the destination. Nothing is ever dropped or narrowed."""
    PAUSE = "pause"
    """The pipeline stops before the first row of the new shape, until a person resumes it."""
    IGNORE = "ignore"
    """New columns are left out; the rest goes on."""


DeadLettersMax = Annotated[int, Meta(ge=1, le=DEAD_LETTERS_LIMIT)]
"""So many dead letters a pipeline may have; one more stops it."""
