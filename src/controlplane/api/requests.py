"""What a request says, checked: its query parameters, preconditions, idempotency key, cursor.

Unknown query parameters are refused: a misspelt `dry_run` must not write.
"""

import hashlib
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import Any

import msgspec
from litestar import Request

from controlplane.api.services import Services
from controlplane.commands import WriteOptions
from controlplane.refusals import Refused, refused_at

LIMIT_DEFAULT = 50
LIMIT_MAX = 200
IDEMPOTENCY_KEY_PATTERN = re.compile(r"^[\x21-\x7e]{1,128}$")
_ETAG = re.compile(r'^"([0-9]{1,19})"$')
_CURSOR_MAC_BYTES = 12
_NUMBER_MAX = 2**63 - 1

Ask = Request[Any, Any, Any]


def services_of(request: Ask) -> Services:
    """Return the process's services."""
    services: Services = request.app.state.services
    return services


class Parameters:
    """The query parameters of a request, of which only those in `allowed` may occur, each once."""

    def __init__(self, request: Ask, *allowed: str) -> None:
        self._values: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            if name not in allowed:
                raise Refused(
                    "invalid_parameter",
                    f"There is no parameter of this name; there are: {', '.join(allowed) or 'none'}.",
                )
            if name in self._values:
                raise Refused("invalid_parameter", f"{name} is given twice.")
            if "\x00" in value:
                raise Refused("invalid_parameter", f"{name} holds a NUL character.")
            self._values[name] = value

    def text(self, name: str) -> str | None:
        """Return a parameter as it was given."""
        return self._values.get(name)

    def flag(self, name: str) -> bool:
        """Return a parameter that is `true` or `false`; false if it is not given.

        Raises:
            Refused: invalid_parameter.
        """
        value = self._values.get(name, "false")
        if value not in ("true", "false"):
            raise Refused("invalid_parameter", f"{name} is true or false.")
        return value == "true"

    def number(self, name: str, default: int, *, least: int = 0, most: int = _NUMBER_MAX) -> int:
        """Return a whole number.

        Raises:
            Refused: invalid_parameter.
        """
        value = self._values.get(name)
        if value is None:
            return default
        if not re.fullmatch(r"[0-9]{1,19}", value) or not least <= int(value) <= most:
            raise Refused("invalid_parameter", f"{name} is a whole number from {least} to {most}.")
        return int(value)

    def moment(self, name: str) -> datetime:
        """Return a time that must be given, with its zone.

        Raises:
            Refused: invalid_parameter.
        """
        try:
            moment = msgspec.convert(self._values.get(name), datetime)
        except msgspec.ValidationError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise Refused("invalid_parameter", f"{name} is a time with its zone, such as 2026-01-31T12:00:00Z.")
        return moment

    @property
    def limit(self) -> int:
        """How many items a page has at most."""
        return self.number("limit", LIMIT_DEFAULT, least=1, most=LIMIT_MAX)

    @property
    def at_least(self) -> int:
        """The revision that the read model must have reached."""
        return self.number("at_least", 0)


def write_options(request: Ask, parameters: Parameters, body: bytes) -> WriteOptions:
    """Return how a write wants to be carried out.

    Raises:
        Refused: invalid_header.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not IDEMPOTENCY_KEY_PATTERN.match(key):
        raise Refused(
            "invalid_header",
            "Idempotency-Key has 1 to 128 printable ASCII characters without spaces.",
            hint="Use a UUID.",
        )
    if_none_match = request.headers.get("if-none-match")
    if if_none_match not in (None, "*"):
        raise Refused("invalid_header", "If-None-Match takes only * here.")
    address = f"{request.method}\n{request.scope['path']}\n{request.scope['query_string'].decode('latin-1')}\n"
    return WriteOptions(
        if_match=_read_if_match(request.headers.get("if-match")),
        if_none_match=if_none_match is not None,
        idempotency_key=key,
        request_digest=hashlib.sha256(address.encode() + body).hexdigest(),
        dry_run=parameters.flag("dry_run"),
    )


def _read_if_match(header: str | None) -> tuple[str, ...]:
    if header is None:
        return ()
    if header.strip() == "*":
        return ("*",)
    found = [_ETAG.match(part.strip()) for part in header.split(",")]
    if not all(found):
        raise Refused("invalid_header", "If-Match has another form than this API's ETags.")
    return tuple(str(int(match[1])) for match in found if match is not None)


def write_cursor(services: Services, purpose: str, after: str) -> str:
    """Return an opaque, signed cursor: where a page ended."""
    mac = _cursor_mac(services, purpose, after)
    return urlsafe_b64encode(mac + after.encode()).rstrip(b"=").decode()


def read_cursor(services: Services, purpose: str, cursor: str | None) -> str:
    """Return where the page before ended; the empty text for the first page.

    Raises:
        Refused: invalid_parameter, for a cursor that this API did not make for this list.
    """
    if cursor is None:
        return ""
    try:
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        after = raw[_CURSOR_MAC_BYTES:].decode()
    except ValueError as error:
        raise _invalid_cursor() from error
    if not hmac.compare_digest(raw[:_CURSOR_MAC_BYTES], _cursor_mac(services, purpose, after)):
        raise _invalid_cursor()
    return after


def _invalid_cursor() -> Refused:
    return refused_at("invalid_parameter", "/cursor", "is not a cursor of this list; start again without one")


def _cursor_mac(services: Services, purpose: str, after: str) -> bytes:
    return hmac.digest(services.secrets.cursor_key(), f"{purpose}\n{after}".encode(), "sha256")[:_CURSOR_MAC_BYTES]
