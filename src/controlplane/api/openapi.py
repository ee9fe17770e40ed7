"""The OpenAPI 3.1 document, made from what the routes declare and from the types that requests and answers have.

It is made once, when it is first asked for: most processes never need it.
"""

from functools import cache
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import msgspec
from litestar import Litestar
from litestar.routes import HTTPRoute

from controlplane.api.operations import Operation, Parameter, operation_of
from controlplane.api.problems import MEDIA_TYPE, Problem
from controlplane.refusals import CODES

_REF = "#/components/schemas/{name}"
_ALWAYS = (
    "unauthenticated",
    "forbidden",
    "invalid_parameter",
    "invalid_header",
    "internal",
    "database_unavailable",
    "too_many_requests",
)
_DESCRIPTION = """\
The control plane of Pointsman: which tables flow where, on which data plane, and how that stands. No record ever passes
through this API.

Writes are whole documents (`PUT`). Every write answers with `revision`; pass it as `at_least` to a read to see what was
written. `ETag` is the resource's generation; send it as `If-Match` to change only what you have read. Send an
`Idempotency-Key` to repeat a write safely. `dry_run=true` checks and changes nothing.

Every error is a problem (RFC 9457) with a stable `code`, a `hint`, and a pointer to each field that is wrong.
"""


@cache
def document(app: Litestar) -> bytes:
    """Return the document as JSON."""
    routes = sorted(_operations(app), key=lambda each: (each[0], each[1]))
    types = _types(operation for _, _, operation in routes)
    _, components = msgspec.json.schema_components(types, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for path, method, operation in routes:
        paths.setdefault(path, {})[method] = _describe(path, operation)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Pointsman",
                "version": version("pointsman"),
                "description": _DESCRIPTION,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {
                    "key": {"type": "http", "scheme": "bearer", "description": "An API key: `pm_…`."},
                },
            },
        }
    )


def _operations(app: Litestar) -> list[tuple[str, str, Operation]]:
    """Return path, method and declaration of every route that is ours."""
    found: list[tuple[str, str, Operation]] = []
    for route in app.routes:
        if not isinstance(route, HTTPRoute):
            continue
        for handler in route.route_handlers:
            found.extend(
                (_path(route), method.lower(), operation_of(handler))
                for method in sorted(handler.http_methods)
                if method != "OPTIONS"
            )
    return found


def _path(route: HTTPRoute) -> str:
    """Return `/v1/pipelines/{name}` for `/v1/pipelines/{name:str}`."""
    parts = [part if isinstance(part, str) else f"{{{part.name}}}" for part in route.path_components]
    return "/" + "/".join(parts)


def _types(operations: Any) -> list[Any]:
    types: list[Any] = [Problem]
    for operation in operations:
        for each in (operation.body, *operation.answers.values()):
            if each is not None and each not in types:
                types.append(each)
    return types


def _describe(path: str, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [_tag(path)],
        "parameters": [*_path_parameters(path), *map(_parameter, operation.parameters)],
        "responses": _responses(operation),
    }
    if operation.description:
        described["description"] = operation.description
    if operation.permission is not None:
        described["security"] = [{"key": []}]
        described["x-permission"] = operation.permission.value
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.body_required,
            "content": _content("application/json", operation.body),
        }
    return described


def _tag(path: str) -> str:
    parts = path.split("/")
    return parts[2] if parts[1] == "v1" else "process"


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string"},
            "description": "The key's id." if name == "key_id" else "The resource's name.",
        }
        for name in names
    ]


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": False,
        "schema": parameter.schema,
        "description": parameter.description,
    }


def _responses(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, form in operation.answers.items():
        content = _content("application/json", form) if form is not None else {"text/plain": {}}
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    codes = (*(_ALWAYS if operation.permission is not None else ("internal",)), *operation.refusals)
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(CODES[code].status, []).append(code)
    for status, which in sorted(by_status.items()):
        told = ", ".join(f"`{code}`" for code in sorted(set(which)))
        problem = {"description": f"A problem: {told}.", "content": _content(MEDIA_TYPE, Problem)}
        responses.setdefault(str(status), problem)
    return responses


def _content(media_type: str, form: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([form], ref_template=_REF)
    return {media_type: {"schema": schema}}
