"""The stream's connection reads the socket itself where it can, and through libpq where it must; both give the same."""

import pytest
from tests.conftest import Database
from tests.dataplane.laws.source_law import equal, streaming
from tests.dataplane.sources.destination import Destination
from tests.dataplane.sources.origins import PostgresOrigin

from dataplane.sources.postgres import replication
from dataplane.sources.postgres.replication import ReplicationConnection
from dataplane.sources.postgres.wire import LibpqWire, SocketWire, Wire


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> list[Wire]:
    """Every wire that a source of this test gets."""
    seen: list[Wire] = []
    detach = ReplicationConnection.detach

    def noted(connection: ReplicationConnection) -> Wire:
        seen.append(detach(connection))
        return seen[-1]

    monkeypatch.setattr(ReplicationConnection, "detach", noted)
    return seen


async def flow(database: Database) -> None:
    """Rows, values that fill many packets, and rows again, compared with the table."""
    origin = PostgresOrigin(database)
    origin.run("CREATE TABLE public.items (id integer PRIMARY KEY, name text)")
    reading = await streaming(origin, Destination())
    origin.run("INSERT INTO public.items SELECT n, 'name ' || n FROM generate_series(1, 20000) n")
    origin.run(
        "ALTER TABLE public.items ALTER name SET STORAGE EXTERNAL",
        "INSERT INTO public.items SELECT n, repeat(chr(97 + n % 20), n * 10) FROM generate_series(30000, 30040) n",
        "INSERT INTO public.items VALUES (40000, repeat('large', 1000000))",
    )
    origin.run("INSERT INTO public.items SELECT n, 'name ' || n FROM generate_series(50001, 70000) n")
    await equal(origin, reading)
    await reading.source.close()


async def test_a_plain_connection_is_read_at_its_socket(database: Database, wires: list[Wire]) -> None:
    """On one machine with a window that closes."""
    await flow(database)
    assert [type(wire) for wire in wires] == [SocketWire]


async def test_libpq_reads_where_something_lies_between(
    database: Database, wires: list[Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with TLS. After a large message libpq reads thousands of small ones at once; none may be left lying there."""
    monkeypatch.setattr(replication, "take_over", lambda _: None)
    await flow(database)
    assert [type(wire) for wire in wires] == [LibpqWire]


class Records:
    """A connection of libpq with TLS as a wire sees it: each call that reads brings one half of a decrypted record."""

    ssl_in_use = True
    used_gssapi = False
    nonblocking = 0

    def __init__(self, halves: list[list[bytes]]) -> None:
        self._halves = halves
        self._held: list[bytes] = []

    def consume_input(self) -> None:
        if self._halves:
            self._held += self._halves.pop(0)

    def get_copy_data(self, _: int) -> tuple[int, bytes]:
        return (len(self._held[0]), self._held.pop(0)) if self._held else (0, b"")


def test_nothing_decrypted_is_left_lying_in_tls() -> None:
    """The socket would not tell of it. A half may bring no whole message."""
    rows = [b"w" + bytes(24) + bytes([letter]) for letter in b"BIC"]
    wire = LibpqWire(Records([rows[:1], [], rows[1:2], rows[2:]]))  # type: ignore[arg-type]
    assert list(wire.read().messages) == rows
    assert list(wire.read().messages) == []
