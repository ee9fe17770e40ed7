"""What every route declares about itself: the permission that it asks for, and what OpenAPI says of it.

The declaration lies in the handler's `opt`, so that permission, documentation and tests have one source.
"""

from typing import Any

from litestar.handlers import BaseRouteHandler
from msgspec import Struct

from controlplane.access.roles import Permission

_KEY = "operation"


class Parameter(Struct, frozen=True, kw_only=True):
    """A query parameter or a header."""

    name: str
    place: str
    schema: dict[str, Any]
    description: str


class Operation(Struct, frozen=True, kw_only=True):
    """One route."""

    id: str
    summary: str
    description: str = ""
    permission: Permission | None = None
    """None: no API key is asked for."""
    body: Any = None
    """The type of the request's body; None if it has none."""
    body_required: bool = True
    answers: dict[int, Any]
    """The type of each successful answer by status; None for one that is not JSON."""
    parameters: tuple[Parameter, ...] = ()
    refusals: tuple[str, ...] = ()
    """Codes that the route may refuse with, beside those that every route has."""


def declared(operation: Operation) -> dict[str, Any]:
    """Return what the handler's decorator takes: `@get(path, **declared(Operation(…)))`."""
    return {"opt": {_KEY: operation}, "name": operation.id}


def operation_of(handler: BaseRouteHandler) -> Operation:
    """Return what a handler declares.

    Raises:
        KeyError: it declares nothing, which a test forbids.
    """
    operation: Operation = handler.opt[_KEY]
    return operation


_NUMBER = {"type": "integer", "minimum": 0}
_FLAG = {"type": "boolean", "default": False}

LIMIT = Parameter(
    name="limit",
    place="query",
    schema={"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
    description="How many items a page has at most.",
)
CURSOR = Parameter(
    name="cursor", place="query", schema={"type": "string"}, description="`next_cursor` of the page before."
)
AT_LEAST = Parameter(
    name="at_least",
    place="query",
    schema=_NUMBER,
    description="A revision that a write answered: the read waits up to 2 s until it is visible.",
)
AFTER = Parameter(name="after", place="query", schema=_NUMBER, description="Only what comes after this number.")
AT = Parameter(
    name="at",
    place="query",
    schema={"type": "string", "format": "date-time"},
    description="The moment, RFC 3339 with its zone. Must be given.",
)
DRY_RUN = Parameter(
    name="dry_run", place="query", schema=_FLAG, description="Check and answer as if, and change nothing."
)
CLEANUP = Parameter(
    name="cleanup",
    place="query",
    schema=_FLAG,
    description="Let the node drop slot, publication and checkpoint first; the pipeline goes when it has.",
)
KIND = Parameter(
    name="kind", place="query", schema={"type": "string"}, description="Only events of resources of this kind."
)
NAME = Parameter(
    name="name", place="query", schema={"type": "string"}, description="Only events of resources of this name."
)
IF_MATCH = Parameter(
    name="If-Match",
    place="header",
    schema={"type": "string"},
    description="The ETag that was read; if the resource has changed since, 412.",
)
IF_NONE_MATCH = Parameter(
    name="If-None-Match",
    place="header",
    schema={"type": "string", "const": "*"},
    description="The resource must not exist yet, otherwise 412.",
)
IDEMPOTENCY_KEY = Parameter(
    name="Idempotency-Key",
    place="header",
    schema={"type": "string", "minLength": 1, "maxLength": 128},
    description="A key of your own: a request repeated under it within 24 hours is answered and not carried out again.",
)

PAGE = (LIMIT, CURSOR, AT_LEAST)
EVENTS = (AFTER, LIMIT, AT_LEAST)
WRITE = (DRY_RUN, IDEMPOTENCY_KEY)
CONDITIONAL_WRITE = (DRY_RUN, IF_MATCH, IDEMPOTENCY_KEY)
PUT = (DRY_RUN, IF_MATCH, IF_NONE_MATCH, IDEMPOTENCY_KEY)
DOCUMENT_REFUSALS = (
    "malformed_json",
    "invalid_name",
    "invalid_document",
    "unknown_field",
    "stale_generation",
    "already_exists",
    "idempotency_key_reused",
)
