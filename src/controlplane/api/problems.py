"""Every error as an RFC 9457 problem: the one place where refusals, HTTP errors and surprises become answers.

A surprise is logged with its traceback and answered with a request id; its text never leaves the process.
"""

import logging
import re
from typing import Any
from urllib.parse import quote

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.status_codes import HTTP_500_INTERNAL_SERVER_ERROR

from controlplane.refusals import CODES, FieldError, Refused

MEDIA_TYPE = "application/problem+json"
TYPE_BASE = "urn:pointsman:problem:"
"""A problem's `type` is this and the code: a name, not an address that has to be served."""

_BY_STATUS = {
    400: "malformed_json",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
}
_TEXT_MAX = 500
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")

_log = logging.getLogger(__name__)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What an error is answered with."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    errors: list[FieldError]
    request_id: str


def problem(refusal: Refused, request_id: str) -> Problem:
    """Return the answer to a refusal."""
    meaning = CODES[refusal.code]
    return Problem(
        type=TYPE_BASE + quote(refusal.code),
        title=meaning.title,
        status=meaning.status,
        detail=_UNPRINTABLE.sub(" ", refusal.detail)[:_TEXT_MAX],
        code=refusal.code,
        hint=refusal.hint,
        errors=[FieldError(each.pointer, each.message[:_TEXT_MAX]) for each in refusal.errors],
        request_id=request_id,
    )


def request_id_of(request: Request[Any, Any, Any]) -> str:
    """Return the id that the outermost layer gave the request."""
    return str(request.scope.get("state", {}).get("request_id", ""))


def on_refused(request: Request[Any, Any, Any], error: Refused) -> Response[bytes]:
    """Answer a refusal."""
    answer = problem(error, request_id_of(request))
    headers = {"Retry-After": "1"} if answer.status in (429, 503) else {}
    if answer.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _response(answer, headers)


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Answer what the framework refuses: an address or a method that is not there, a body that is too large."""
    code = _BY_STATUS.get(error.status_code)
    if code is None:
        return on_surprise(request, error)
    detail = f"{request.method} {request.scope['path'][:200]}: {CODES[code].title}."
    headers = {name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"}
    return _response(problem(Refused(code, detail), request_id_of(request)), headers)


def on_surprise(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer what nobody foresaw. The text stays in the log."""
    request_id = request_id_of(request)
    _log.error("request %s failed", request_id, exc_info=error)
    return _response(problem(Refused("internal", "The request failed inside."), request_id), {})


def _response(answer: Problem, headers: dict[str, str]) -> Response[bytes]:
    return Response(
        msgspec.json.encode(answer),
        status_code=answer.status or HTTP_500_INTERNAL_SERVER_ERROR,
        media_type=MEDIA_TYPE,
        headers=headers,
    )
