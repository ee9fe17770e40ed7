"""How what a pipeline makes in a database is named: its publication and its slots at the source.

In a module of its own, so that whoever only looks for these objects need not load a whole source.
"""

import hashlib
from uuid import UUID


def object_name(pipeline_id: str) -> str:
    """Return the name of a pipeline's publication, and what its slots' names begin with (before `_<incarnation>`).

    It fits PostgreSQL's 63 characters with an incarnation, and needs no quotes.
    """
    try:
        digits = UUID(pipeline_id).hex
    except ValueError:
        digits = hashlib.sha256(pipeline_id.encode()).hexdigest()[:32]
    return f"pm_{digits}"
