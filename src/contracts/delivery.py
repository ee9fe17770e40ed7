"""What a destination does with a row that it refuses, with a table whose shape changes, and what it shows as one.

The words of `sink` in a pipeline's document, and the numbers that go with them. A person writes them, the control plane
carries them, and the node's sink obeys. Add a word here, never reuse or rename one: golden files hold their values.
"""

from enum import Enum
from typing import Annotated

from msgspec import Meta

DEAD_LETTERS_DEFAULT = 1_000
DEAD_LETTERS_LIMIT = 1_000_000
PARALLELISM_MAX = 8


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


class Consistency(Enum):
    """What becomes visible at the destination as one."""

    TRANSACTION = "transaction"
    """Whole transactions of the source, in their order."""
    KEY = "key"
    """Each key's changes, in their order. Changes of different keys may be seen in another order than at the source."""


Parallelism = Annotated[int, Meta(ge=1, le=PARALLELISM_MAX)]
"""Over so many connections rows are written at once. More than one needs `consistency: key`."""

DeadLettersMax = Annotated[int, Meta(ge=1, le=DEAD_LETTERS_LIMIT)]
"""So many dead letters a pipeline may have; one more stops it."""
