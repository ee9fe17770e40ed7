"""A network of our own between processes: TCP proxies on loopback that can be cut, stalled and slowed.

Each `Proxy` listens on a port and joins what connects there with one target. All run in one thread's event loop, so that
tests with blocking calls and programs with loops of their own can use them. A state holds for connections that are open
and for those that come:

- open: bytes pass, after `delay_seconds`.
- stalled: nothing passes and nothing is closed, as when a cable is pulled.
- cut: what is open is reset, what comes is reset, as when a firewall says no.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any

CHUNK_BYTES = 64 << 10
RESET = struct.pack("ii", 1, 0)  # linger for no time: closing sends a reset


class Network:
    """The thread that all proxies of one test live in."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._thread.start()
        self._proxies: list[Proxy] = []

    def proxy(self, port: int) -> "Proxy":
        """Listen on a free port for connections to `port` of 127.0.0.1."""
        proxy = Proxy(port)
        self.run(proxy.start())
        self._proxies.append(proxy)
        proxy.network = self
        return proxy

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in the thread, and wait for it."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self) -> None:
        """End every proxy and the thread."""
        for proxy in self._proxies:
            self.run(proxy.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Proxy:
    """One way between two processes. `port` is where the first connects; the rest may be called from any thread."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.network: Network | None = None
        self._target = target
        self._delay_seconds = 0.0
        self._flows = asyncio.Event()
        self._flows.set()
        self._cut = False
        self._pairs: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """End, and reset what is open."""
        if self._server is not None:
            self._server.close()
        await self._set(cut=True, stalled=False, delay_seconds=0.0)

    def heal(self) -> None:
        """Let everything pass at once again."""
        self._change(cut=False, stalled=False, delay_seconds=0.0)

    def cut(self) -> None:
        """Reset all connections, and those that are tried."""
        self._change(cut=True, stalled=False, delay_seconds=0.0)

    def stall(self) -> None:
        """Let nothing pass, without a word."""
        self._change(cut=False, stalled=True, delay_seconds=0.0)

    def slow(self, seconds: float) -> None:
        """Let each piece pass `seconds` later, one after the other."""
        self._change(cut=False, stalled=False, delay_seconds=seconds)

    def _change(self, *, cut: bool, stalled: bool, delay_seconds: float) -> None:
        assert self.network is not None
        self.network.run(self._set(cut=cut, stalled=stalled, delay_seconds=delay_seconds))

    async def _set(self, *, cut: bool, stalled: bool, delay_seconds: float) -> None:
        self._cut, self._delay_seconds = cut, delay_seconds
        if stalled:
            self._flows.clear()
        else:
            self._flows.set()
        if cut:
            tasks = list(self._pairs)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers = self._pairs[task] = [writer]
        try:
            if self._cut:
                return
            await self._flows.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            writers.append(far_writer)
            ways = [asyncio.create_task(self._pass(reader, far_writer))]
            ways.append(asyncio.create_task(self._pass(far_reader, writer)))
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            del self._pairs[task]
            for each in writers:
                _reset(each)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                await self._flows.wait()
                writer.write(data)
                await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        if (held := writer.get_extra_info("socket")) is not None:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
