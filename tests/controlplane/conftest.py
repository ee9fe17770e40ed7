"""One control plane for the session, served over HTTP on a real socket; every test works in a tenant of its own.

The hub is away on purpose: whatever is tested here must work without it.
"""

import asyncio
import hashlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
import uvicorn

from contracts.keys import KeyPair, Role
from controlplane.app import ControlPlane
from controlplane.channel import keys
from controlplane.settings import ApiSettings, DatabaseSettings, HubSettings, Settings

OPERATOR_KEY = "operator-key-of-the-tests"


def make_settings(server: Any, database: str, folder: Path, user: str = "postgres") -> Settings:
    """Settings of a control plane on a database of the shared server, with keys of its own."""
    if not (folder / "master.key").exists():
        keys.create(folder)
    return Settings(
        api=ApiSettings(port=0),
        database=DatabaseSettings(host="127.0.0.1", port=server.port, name=database, user=user),
        hub=HubSettings(url="nats://127.0.0.1:9", leaf_url="nats://hub.example:7422"),
        keys_folder=str(folder),
        operator_key_sha256=hashlib.sha256(OPERATOR_KEY.encode()).hexdigest(),
        log_level="error",
    )


class Served:
    """A control plane that serves on a thread with an event loop of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.control_plane = ControlPlane(settings)
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()  # from now on a request waits instead of being refused
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(self.control_plane.asgi, log_config=None, lifespan="off", ws="none", access_log=False)
        )
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(20)

    async def _serve(self) -> None:
        await self.control_plane.start()
        self._started.set()
        await self._server._serve([self._listener])
        await self.control_plane.stop()

    def administrator(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Connect to the database as somebody whom row-level security does not hold: for what a test prepares or checks."""
        own = self.settings.database
        conninfo = psycopg.conninfo.make_conninfo("", host=own.host, port=own.port, dbname=own.name, user="postgres")
        return psycopg.connect(conninfo, autocommit=True)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._listener.close()
        assert not self._thread.is_alive()


class Tenant:
    """A tenant of one test, with a client for its owner and for any other role."""

    def __init__(self, served: Served, name: str | None = None) -> None:
        self.served = served
        self.name = name or f"t-{uuid4().hex[:10]}"
        with httpx.Client(base_url=served.url, headers=bearer(OPERATOR_KEY), verify=False) as operator:
            made = operator.post("/v1/tenants", json={"name": self.name})
        assert made.status_code == 201, made.text
        self.id: str = made.json()["tenant"]
        self.key: str = made.json()["api_key"]
        self._clients: list[httpx.Client] = []
        self.api = self.client(self.key)

    def client(self, key: str) -> httpx.Client:
        client = httpx.Client(base_url=self.served.url, headers=bearer(key), timeout=30, verify=False)
        self._clients.append(client)
        return client

    def as_role(self, role: str, **more: Any) -> httpx.Client:
        made = self.api.post("/v1/api-keys", json={"name": f"a-{role}", "role": role, **more})
        assert made.status_code == 201, made.text
        self.seen(made)
        return self.client(made.json()["api_key"])

    def seen(self, written: httpx.Response) -> None:
        """Wait until what was written can be read, on however slow a machine."""
        behind = True
        while behind:
            read = self.api.get("/v1/api-keys", params={"at_least": written.json()["revision"]})
            behind = read.status_code == 503

    def put(self, path: str, document: Any, **headers: str) -> httpx.Response:
        return self.api.put(path, json=document, headers=headers)

    def make_documents(self) -> None:
        """A data plane, two connections and a pipeline between them."""
        for path, document in (
            ("/v1/data-planes/local", {}),
            ("/v1/connections/shop", connection("shop")),
            ("/v1/connections/warehouse", connection("warehouse")),
            ("/v1/pipelines/orders", pipeline()),
        ):
            made = self.put(path, document)
            assert made.status_code == 201, made.text

    def close(self) -> None:
        for client in self._clients:
            client.close()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def connection(database: str, **config: Any) -> dict[str, Any]:
    """A connection's document."""
    return {
        "kind": "Connection",
        "type": "postgres",
        "config": {"host": "db.internal", "port": 5432, "database": database, "user": "pointsman", **config},
        "secrets": {"password": f"file:{database}_password"},
    }


def pipeline(**changes: Any) -> dict[str, Any]:
    """A pipeline's document."""
    return {
        "kind": "Pipeline",
        "data_plane": "local",
        "source": {"connection": "shop", "tables": ["public.orders", "public.customers"]},
        "sink": {"connection": "warehouse"},
        **changes,
    }


def user_key() -> str:
    """The public half of a new user's nkey."""
    return KeyPair.generate(Role.USER).public


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem that a response is, with the status and code that are expected."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["code"]) == (status, code), response.text
    assert set(body) == {"type", "title", "status", "detail", "code", "hint", "errors", "request_id"}
    assert body["hint"]
    assert body["request_id"] == response.headers["x-request-id"]
    return body


@pytest.fixture(scope="session")
def served(postgres_server: Any) -> Iterator[Served]:
    """The session's control plane, on a database as a managed service gives it: its user is no superuser."""
    folder = Path(tempfile.mkdtemp(prefix="pm-cp-"))
    name = f"cp_{uuid4().hex[:10]}"
    with psycopg.connect(postgres_server.conninfo(), autocommit=True) as admin:
        admin.execute(f'CREATE ROLE "{name}_user" LOGIN CREATEROLE')
        admin.execute(f'CREATE DATABASE "{name}" OWNER "{name}_user"')
    running = Served(make_settings(postgres_server, name, folder, f"{name}_user"))
    yield running
    running.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_tenant(served: Served) -> Iterator[Callable[[], Tenant]]:
    """Return a function that makes tenants."""
    made: list[Tenant] = []

    def make() -> Tenant:
        made.append(Tenant(served))
        return made[-1]

    yield make
    for tenant in made:
        tenant.close()


@pytest.fixture
def tenant(make_tenant: Callable[[], Tenant]) -> Tenant:
    """A tenant without anything in it."""
    return make_tenant()


@pytest.fixture
def shop(tenant: Tenant) -> Tenant:
    """A tenant with a data plane, two connections and a pipeline."""
    tenant.make_documents()
    return tenant


@pytest.fixture(scope="session")
def standing(served: Served) -> Iterator[Tenant]:
    """A tenant with documents that no test changes: for requests that must all be refused."""
    tenant = Tenant(served)
    tenant.make_documents()
    yield tenant
    tenant.close()


@pytest.fixture
def operator(served: Served) -> Iterator[httpx.Client]:
    """The vendor's operator."""
    with httpx.Client(base_url=served.url, headers=bearer(OPERATOR_KEY), timeout=30, verify=False) as client:
        yield client
