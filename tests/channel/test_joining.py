"""A machine joins with a one-time token: keys are born on it, and what comes back is checked before it is kept."""

import asyncio
import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.channel.conftest import ControlPlane

from contracts import identity
from contracts.keys import KeyPair, Role
from dataplane import config
from dataplane.link import certificate, enrolment, leaf
from dataplane.link.enrolment import JoinFailed
from dataplane.link.store import DocumentStore
from pointsman.local import processes


@contextmanager
def _api(answer: Any) -> Iterator[str]:
    """An API that answers POST /v1/enrol with what `answer(request)` gives: a status and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, content = answer(body)
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            return None

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _enrolled(control: ControlPlane, request: dict[str, Any]) -> dict[str, Any]:
    accounts = control.channel.accounts
    key = request["leaf_key"]
    return {
        "tenant": control.tenant,
        "account": accounts.account_key(control.tenant),
        "data_plane": "local",
        "node": request["node"],
        "root_key": accounts.root_key,
        "trust": accounts.trust_document(control.tenant, "local"),
        "hub_leaf_url": control.hub.leaf_url,
        "leaf_jwt": accounts.leaf_credentials(control.tenant, "local", key) if key else None,
        "leaf_certificate": None,
        "leaf_certificates": False,
    }


async def test_joining_makes_keys_here_and_pins_what_comes_back(control: ControlPlane, folder: Path) -> None:
    """Repeated, it uses the same keys; a second node uses the leaf that the first one made; seeds are for their owner."""
    requests: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        requests.append(request)
        if len(requests) == 1:
            return 503, {"code": "database_unavailable", "detail": "later", "hint": "try again"}
        return 200, _enrolled(control, request)

    port = processes.free_port()
    with _api(answer) as url:

        def join(name: str) -> config.NodeConfig:
            place = folder / name
            return enrolment.join(place, api=url, token="t", node=name, leaf_folder=folder / "leaf", leaf_port=port)

        with pytest.raises(JoinFailed) as failed:
            await asyncio.to_thread(join, "node-1")
        assert failed.value.code == "database_unavailable"
        assert not (folder / "node-1" / config.FILE_NAME).exists()
        joined = await asyncio.to_thread(join, "node-1")
        await asyncio.to_thread(join, "node-2")
    assert requests[0]["node_key"] == requests[1]["node_key"] != requests[2]["node_key"]
    assert requests[1]["leaf_key"] == requests[0]["leaf_key"]
    assert requests[2]["leaf_key"] is None
    assert config.read(folder / "node-1") == joined
    trust = DocumentStore(folder / "node-1" / enrolment.DOCUMENTS).trust()
    assert trust is not None
    seeds = [joined.seed_file, joined.ctl_seed_file, joined.data_seed_file, folder / "leaf" / leaf.CREDENTIALS]
    assert {stat.S_IMODE(os.stat(seed).st_mode) for seed in seeds} == {0o600}
    assert (
        leaf.render(
            folder=folder / "leaf",
            data_plane="local",
            ctl_key="U" + "A" * 55,
            data_key="U" + "B" * 55,
            hub_url=None,
            port=port,
        ).count("remotes")
        == 0
    )


async def test_an_answer_that_cannot_be_trusted_leaves_no_node(control: ControlPlane, folder: Path) -> None:
    """A trust list of another root, or no control plane at all, is refused and nothing is a node afterwards."""

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        return 200, {**_enrolled(control, request), "root_key": control.channel.accounts.control_key}

    with _api(answer) as url, pytest.raises(JoinFailed) as failed:
        await asyncio.to_thread(enrolment.join, folder / "node-1", api=url, token="t", node="node-1")
    assert failed.value.code == "bad_answer"
    with pytest.raises(JoinFailed) as failed:
        await asyncio.to_thread(
            enrolment.join, folder / "node-1", api=f"http://127.0.0.1:{processes.free_port()}", token="t", node="node-1"
        )
    assert failed.value.code == "unreachable"
    assert not (folder / "node-1" / config.FILE_NAME).exists()


async def test_a_token_is_good_for_the_control_plane_that_issued_it_only(control: ControlPlane, folder: Path) -> None:
    """An answer whose list is properly signed, by another control plane's root key, is refused: the token pins the root."""
    sent: list[str] = []

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        sent.append(request["token"])
        return 200, _enrolled(control, request)

    pinned_here = identity.pinned("t", control.channel.accounts.root_key)
    pinned_elsewhere = identity.pinned("t", KeyPair.generate(Role.ACCOUNT).public)
    place = folder / "node-1"
    with _api(answer) as url:
        with pytest.raises(JoinFailed) as failed:
            await asyncio.to_thread(enrolment.join, place, api=url, token=pinned_elsewhere, node="node-1")
        assert failed.value.code == "bad_answer"
        assert not (place / config.FILE_NAME).exists()
        await asyncio.to_thread(enrolment.join, place, api=url, token=pinned_here, node="node-1")
    assert sent == ["t", "t"]


async def test_a_certificate_for_another_key_leaves_no_node(control: ControlPlane, folder: Path) -> None:
    """What comes back is kept only if it is for the TLS key that was made here."""
    certificates = control.channel.certificates
    other = KeyPair.generate(Role.USER)
    other_key = certificate.key_of(folder / "other.key")

    def answer(request: dict[str, Any]) -> tuple[int, Any]:
        given = certificates.for_leaf(
            control.tenant, "local", other.public, other_key, identity.prove(other, other_key)
        )
        return 200, {**_enrolled(control, request), "leaf_certificate": given, "leaf_certificates": True}

    with _api(answer) as url, pytest.raises(JoinFailed, match="another key"):
        await asyncio.to_thread(enrolment.join, folder / "node-1", api=url, token="t", node="node-1")
    assert not (folder / "node-1" / config.FILE_NAME).exists()
