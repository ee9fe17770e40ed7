"""The ASGI application: all controllers, one place for errors, and the outermost layer that names and times requests."""

import re
import time
from secrets import token_hex
from typing import Any

from litestar import Litestar
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from controlplane.api.access_grants import AccessGrantController
from controlplane.api.api_keys import ApiKeyController
from controlplane.api.audit import AuditController
from controlplane.api.connection_checks import ConnectionCheckController
from controlplane.api.connections import ConnectionController
from controlplane.api.data_planes import DataPlaneController
from controlplane.api.enrolment import EnrolmentController
from controlplane.api.events import EventController
from controlplane.api.fleet import FleetController
from controlplane.api.health import HealthController
from controlplane.api.members import MemberController
from controlplane.api.nodes import NodeController
from controlplane.api.operators import OperatorController
from controlplane.api.pipelines import PipelineController
from controlplane.api.problems import on_http_error, on_refused, on_surprise
from controlplane.api.services import Services
from controlplane.api.tenants import TenantController
from controlplane.refusals import Refused

BODY_BYTES_MAX = 1024 * 1024
CONTROLLERS = (
    AccessGrantController,
    ApiKeyController,
    AuditController,
    ConnectionCheckController,
    ConnectionController,
    DataPlaneController,
    EnrolmentController,
    EventController,
    FleetController,
    HealthController,
    MemberController,
    NodeController,
    OperatorController,
    PipelineController,
    TenantController,
)
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")


def create_app(services: Services) -> ASGIApp:
    """Return the application."""
    litestar = Litestar(
        route_handlers=list(CONTROLLERS),
        exception_handlers={Refused: on_refused, HTTPException: on_http_error, Exception: on_surprise},
        request_max_body_size=BODY_BYTES_MAX,
        openapi_config=None,
        logging_config=None,
        state=State({"services": services}),
        debug=False,
    )
    return Observed(litestar, services)


class Observed:
    """Gives every request an id, and measures it by its route's template; a path that is no route has none."""

    def __init__(self, app: Litestar, services: Services) -> None:
        self.app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != ScopeType.HTTP:
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            template: Any = scope.get("path_template")
            route = str(template) if template else "none"
            elapsed = time.perf_counter() - started
            self._services.metrics.requests.labels(scope["method"], route, str(status)).observe(elapsed)


def _request_id(scope: Scope) -> str:
    """Return the caller's own id if it has a plain form, otherwise a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            if _REQUEST_ID.match(given):
                return given
    return token_hex(8)
