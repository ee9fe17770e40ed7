"""Why a request is refused: one value that commands raise, with a stable code, and the table of all codes.

`api.problems` turns it into an RFC 9457 answer; nothing else maps codes to statuses. A refusal changes nothing.
Add a code here, never rename one: scripts of users branch on them. Texts never quote a value that was sent.
"""

from typing import NamedTuple

from msgspec import Struct


class Meaning(NamedTuple):
    """What a code means: the HTTP status, a title that is the same for each use, and a hint for the usual way out."""

    status: int
    title: str
    hint: str


CODES: dict[str, Meaning] = {
    "unauthenticated": Meaning(
        401, "No valid API key", "Send `Authorization: Bearer pm_…` with a key that is not expired or revoked."
    ),
    "forbidden": Meaning(403, "The key's role does not allow this", "Use a key of a role that may do it."),
    "not_found": Meaning(404, "There is no such resource", "List what exists with `pointsman get`."),
    "method_not_allowed": Meaning(405, "The method is not allowed here", "See /schema/openapi.json."),
    "body_too_large": Meaning(413, "The body is larger than 1 MiB", "Send one document per request."),
    "malformed_json": Meaning(400, "The body is not JSON", "Send a JSON object, encoded as UTF-8."),
    "invalid_header": Meaning(400, "A header has the wrong form", 'If-Match takes an ETag such as "3", or *.'),
    "invalid_parameter": Meaning(400, "A query parameter has the wrong form", "See /schema/openapi.json."),
    "invalid_name": Meaning(
        422,
        "The name is not allowed",
        "Use lower-case letters, digits and hyphens, at most 63, starting and ending with a letter or digit.",
    ),
    "invalid_document": Meaning(422, "The document is not valid", "Correct the fields that `errors` points at."),
    "unknown_field": Meaning(422, "The document has a field that does not exist", "Remove it or correct its spelling."),
    "unknown_type": Meaning(422, "There is no such type", "Use one of the types that the detail names."),
    "unfit_connection": Meaning(
        422,
        "The connection is to a system that cannot stand there",
        "Name another connection: `pointsman get connections` shows their types.",
    ),
    "unknown_connection": Meaning(422, "The pipeline names a connection that does not exist", "Apply it first."),
    "unknown_table": Meaning(
        422,
        "The pipeline does not capture this table",
        "See its tables with `pointsman describe pipeline NAME`, or add the table and apply.",
    ),
    "unknown_column": Meaning(
        422,
        "The table has no such column, as far as a node has told",
        "Correct its name. A column that is new is known once a row with it was captured, or after `pointsman restart`.",
    ),
    "invalid_condition": Meaning(
        422,
        "A condition cannot be read",
        "Write `column op value`, op one of = != < <= > >= in between `is null` `is not null`: `id >= 1000`,"
        " `state in (new, 'on hold')`, `at between 2026-01-01 and 2026-01-31`.",
    ),
    "unknown_data_plane": Meaning(
        422, "The pipeline names a data plane that does not exist", "Create it with PUT /v1/data-planes/{name}."
    ),
    "secret_in_plain_text": Meaning(
        422,
        "A secret is written in plain text",
        "Put the value where only the node reads it and refer to it: `password: file:NAME` or `password: env:NAME`.",
    ),
    "signature_invalid": Meaning(
        422,
        "The customer's signature does not hold",
        "Sign again with `pointsman apply --sign`, or take `signature` out of the document.",
    ),
    "same_table_cycle": Meaning(
        422,
        "A table would be copied onto itself",
        "Choose a destination in another database, or take the table out of one of the pipelines.",
    ),
    "table_taken": Meaning(
        409, "Another pipeline writes the same destination table", "Let one pipeline write each destination table."
    ),
    "too_large_for_the_channel": Meaning(
        422, "The document is too large to be sent to a node", "Split the pipeline: name fewer tables in each."
    ),
    "too_many_resources": Meaning(
        422, "The limit of resources is reached", "Delete what is not used, or add a data plane."
    ),
    "immutable_field": Meaning(
        422, "This field cannot change", "Delete the resource and make it again, or make another one."
    ),
    "in_use": Meaning(409, "Something else still uses it", "Delete or change what uses it first."),
    "being_removed": Meaning(
        409, "The pipeline is being removed", "Wait until it is gone, or delete it without cleanup."
    ),
    "stale_generation": Meaning(
        412, "The resource has changed since it was read", "Read it again, look at the difference, then write."
    ),
    "already_exists": Meaning(412, "The resource exists already", "Leave out `If-None-Match: *` to change it."),
    "name_taken": Meaning(409, "The name is taken", "Choose another name."),
    "idempotency_key_reused": Meaning(
        422, "The Idempotency-Key was used for another request", "Use a new key for a new request."
    ),
    "too_many_requests": Meaning(
        429,
        "Too many requests",
        "Wait as long as Retry-After says, then send fewer, with a key or token that is valid.",
    ),
    "write_conflict": Meaning(503, "Too many writes at the same moment", "Nothing has changed. Try again."),
    "projection_behind": Meaning(503, "The read model has not come that far", "Try again in a moment."),
    "database_unavailable": Meaning(503, "The database does not answer", "Nothing was answered. Try again."),
    "invalid_token": Meaning(
        401, "The join token is not valid", "Issue a new one: POST /v1/data-planes/{name}/join-tokens."
    ),
    "token_used": Meaning(409, "The join token was used by another node", "Issue a token for each node that joins."),
    "certificate_refused": Meaning(
        403,
        "The leaf gets no certificate",
        "Only a node that is a member of the leaf's data plane, with a leaf that is not revoked, gets one. Join again if need be.",
    ),
    "contract_not_spoken": Meaning(422, "The node's contract version is not spoken here", "Upgrade the node."),
    "no_node": Meaning(
        409,
        "No connected node can do this",
        "See the nodes with `pointsman get nodes`, and whether a pipeline uses it.",
    ),
    "node_silent": Meaning(504, "The node did not answer in time", "See how it is with `pointsman get nodes`."),
    "hub_unavailable": Meaning(503, "The channel is not ready", "See /readyz, then try again."),
    "read_model_unavailable": Meaning(
        503,
        "The read model of this tenant is set aside",
        "Writes and nodes go on. The operator has to repair and rebuild it.",
    ),
    "history_unreadable": Meaning(
        503, "An event was written by a newer version", "Run the version that wrote it, or a newer one."
    ),
    "history_too_long": Meaning(
        422, "There is too much history to fold for an answer", "Take `pointsman audit export` and read it yourself."
    ),
    "audit_unavailable": Meaning(
        503, "The audit log of this tenant is set aside", "The operator has to repair and rebuild it."
    ),
    "internal": Meaning(500, "Something failed inside", "Give the request id to whoever runs this control plane."),
}


class FieldError(Struct, frozen=True):
    """Which part of a document is wrong, as a JSON pointer, and why."""

    pointer: str
    message: str


class Refused(Exception):
    """The request is refused; `code` is one of CODES."""

    def __init__(self, code: str, detail: str, *, hint: str | None = None, errors: tuple[FieldError, ...] = ()) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.hint = hint if hint is not None else CODES[code].hint
        self.errors = errors


def refused_at(code: str, pointer: str, message: str) -> Refused:
    """Return a refusal that is about one field."""
    return Refused(code, f"{pointer}: {message}", errors=(FieldError(pointer, message),))
