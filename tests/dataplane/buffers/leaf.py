"""A leaf for tests: a plain nats-server with JetStream and one user of the DATA account, as the leaf's template has it."""

import signal
import subprocess
import time
from pathlib import Path

from contracts.keys import KeyPair, Role
from dataplane.worker.protocol import BufferAccess
from pointsman.local import processes
from pointsman.local.nats import nats_server

CONFIG = """
server_name: "leaf"
listen: "127.0.0.1:{port}"
max_payload: 1048576
jetstream {{ store_dir: "{folder}/store", sync_interval: always, domain: "leaf-test", max_file_store: 4GB }}
accounts {{
  DATA {{
    jetstream: enabled
    users: [{{
      nkey: "{key}"
      permissions {{
        publish {{ allow: ["buffer.>", "$JS.API.>", "$JS.ACK.>", "$JS.FC.>", "$KV.>", "_INBOX.>"] }}
        subscribe {{ allow: ["buffer.>", "_INBOX.>"] }}
      }}
    }}]
  }}
}}
"""


class Leaf:
    """One server; `start` and `kill` as often as needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = processes.free_port()
        pair = KeyPair.generate(Role.USER)
        folder.mkdir(parents=True, exist_ok=True)
        seed = folder / "data.nk"
        seed.touch(mode=0o600)
        seed.write_text(pair.seed)
        self.access = BufferAccess(url=f"nats://127.0.0.1:{self.port}", seed_file=str(seed))
        (folder / "leaf.conf").write_text(CONFIG.format(port=self.port, folder=folder, key=pair.public))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it says that it is ready."""
        log = self.folder / "leaf.log"
        before = log.read_text().count("Server is ready") if log.exists() else 0
        self.process = processes.start([nats_server(), "-c", str(self.folder / "leaf.conf")], log=log)
        end = time.monotonic() + 20
        while log.read_text().count("Server is ready") == before:
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)

    def kill(self) -> None:
        """As if its machine had lost power, but for what the disk holds."""
        assert self.process is not None
        processes.stop(self.process.pid, ask=signal.SIGKILL)
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            processes.stop(self.process.pid)
            self.process.wait()
            self.process = None
