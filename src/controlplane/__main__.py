"""`python -m controlplane --settings FILE`: serve until SIGTERM or SIGINT; `--rebuild` derives all tables again and ends."""

import argparse
import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import uvicorn

from controlplane.app import ControlPlane, rebuild_everything, wait_for_database
from controlplane.row_security import RightsMissingError
from controlplane.settings import Settings, read

GRACEFUL_SECONDS_MAX = 3
"""How long running requests may take to end."""
KEEP_ALIVE_SECONDS = 30
BACKLOG = 512

_RIGHTS_MISSING = "the database's user may not make roles; give it CREATEROLE, or let an administrator run: %s"

_log = logging.getLogger("controlplane")


class Server(uvicorn.Server):
    """uvicorn's server, but for its signal handling: ours also covers the time before it serves."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`."""
        yield


async def serve(settings: Settings) -> int:
    """Run the control plane until a signal asks it to end, and return the exit code."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    stopping = threading.Event()

    def stop() -> None:
        stopping.set()
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if not await loop.run_in_executor(None, wait_for_database, settings.database, stopping):
        return 0
    try:
        listener = _listen(settings.api.host, settings.api.port)
    except OSError as error:
        _log.error("cannot listen on %s:%d: %s", settings.api.host, settings.api.port, error.strerror)
        return 1
    try:
        control_plane = await loop.run_in_executor(None, ControlPlane, settings)
    except RightsMissingError as error:
        listener.close()
        _log.error(_RIGHTS_MISSING, error)
        return 1
    await control_plane.start()
    server = Server(_config(control_plane))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    _log.info("serving on %s:%d", *listener.getsockname()[:2])
    asking = asyncio.create_task(asked.wait())
    await asyncio.wait({serving, asking}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    asking.cancel()
    await serving
    await control_plane.stop()
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Its protocol is named, because asyncio turns Nagle's algorithm off only then.

    Raises:
        OSError: the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _config(control_plane: ControlPlane) -> uvicorn.Config:
    return uvicorn.Config(
        control_plane.asgi,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_SECONDS_MAX,
    )


def main() -> int:
    """Read the settings and run."""
    parser = argparse.ArgumentParser(prog="python -m controlplane", description="Pointsman's control plane.")
    parser.add_argument("--settings", type=Path, required=True, metavar="FILE", help="the settings, a JSON file")
    parser.add_argument("--rebuild", action="store_true", help="derive every table from the log again, then end")
    arguments = parser.parse_args()
    try:
        settings = read(arguments.settings)
    except (OSError, msgspec.MsgspecError) as error:
        print(f"the settings cannot be read: {error}", file=sys.stderr)  # noqa: T201 - no logging before the settings
        return 64
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    # uvicorn's own lines say less than ours.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    if arguments.rebuild:
        try:
            _log.info("rebuilt up to event %d", rebuild_everything(settings))
        except RightsMissingError as error:
            _log.error(_RIGHTS_MISSING, error)
            return 1
        return 0
    return asyncio.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
