"""Keys of the control plane change while a pipeline runs: rows and configuration flow through each step."""

import socket
from pathlib import Path

import psutil
import pytest
from tests.system.databases import Databases, Pair
from tests.system.stack import Stack, eventually

from dataplane.link import certificate

pytestmark = [pytest.mark.system, pytest.mark.timeout(480)]


@pytest.fixture(scope="module")
def pair(stack: Stack, databases: Databases) -> Pair:
    """A pipeline that is ready."""
    made = databases.pair("turning", stack.secrets)
    made.source.execute("CREATE TABLE rows (id int PRIMARY KEY)")
    stack.apply(made.manifest("public.rows"))
    stack.wait(made.name)
    return made


class Flow:
    """What must go on: rows, and changes of configuration that the node acknowledges."""

    def __init__(self, stack: Stack, pair: Pair) -> None:
        self.stack, self.pair, self.number = stack, pair, 0

    def rows(self) -> None:
        self.number += 1
        self.pair.source.execute("INSERT INTO rows VALUES (%s)", self.number)
        eventually(lambda: self.pair.equal("rows"), within=60, what=f"row {self.number}")

    def configuration(self) -> None:
        self.stack.cli("pause", "pipeline", self.pair.name)
        self.stack.wait(self.pair.name, "paused")
        self.stack.cli("resume", "pipeline", self.pair.name)

    def turn(self, verb: str, kind: str) -> None:
        self.stack.cli(verb, kind)
        self.configuration()
        self.rows()


def _bundle(folder: Path) -> list[str]:
    end = "-----END CERTIFICATE-----\n"
    return [each + end for each in (folder / certificate.AUTHORITIES).read_text().split(end) if each]


def test_rows_and_configuration_flow_through_every_rotation(stack: Stack, pair: Pair) -> None:
    """The authority and the documents' key: each rotated, and the old one retired."""
    flow = Flow(stack, pair)
    place = stack.folder / "leaf"
    (first,) = _bundle(place)
    flow.turn("rotate", "ca")
    eventually(lambda: len(_bundle(place)) == 2, within=60, what="both authorities at the leaf")
    newest = _bundle(place)[0]
    eventually(lambda: certificate.is_by(place, newest), within=60, what="a certificate by the new authority")
    flow.turn("retire", "ca")
    eventually(lambda: _bundle(place) == [newest], within=60, what="the new authority alone")
    assert first != newest
    flow.turn("rotate", "signing")
    flow.turn("retire", "signing")
    stack.cli("retire", "ca", expect=5)


def test_nothing_on_the_customers_side_can_be_reached_from_another_machine(stack: Stack, pair: Pair) -> None:
    """Leaf, node and workers listen on the loopback address alone: with every inbound port closed all of it works."""
    own = [stack.pid("leaf"), stack.pid("node-1"), *(worker.pid for worker in stack.workers(pair.name))]
    assert len(own) >= 3
    listening = [
        (connection.laddr.ip, connection.laddr.port)
        for pid in own
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or (connection.type == socket.SOCK_DGRAM and not connection.raddr)
    ]
    assert listening, "the leaf at least listens for its node"
    assert {address for address, _ in listening} == {"127.0.0.1"}
