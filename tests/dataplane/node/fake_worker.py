"""A worker that carries nothing and speaks the protocol: started by the supervisor in place of the real one.

Its pipeline's name says how it behaves: `crashing…` ends at once, `stubborn…` ignores SIGTERM, `rude…` sends a line that
is no status. SIGUSR1 makes it fall silent without ending.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

INTERVAL_SECONDS = 0.1


def status(assignment: dict, phase_since: float) -> bytes:
    document = json.loads(assignment["document"])
    phase = {"paused": "paused", "removed": "removed"}.get(document["run"], "streaming")
    line = {
        "pipeline": document["name"],
        "half": assignment["half"],
        "pid": os.getpid(),
        "epoch": document["epoch"],
        "generation": document["generation"],
        "restarts": assignment["restarts"],
        "phase": phase,
        "since_seconds": phase_since,
        "telemetry": {"rows_total": 7},
    }
    return json.dumps(line).encode() + b"\n"


class Worker:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.assignment = json.loads(path.read_text())
        self.silent = False
        self.since = time.time()

    @property
    def name(self) -> str:
        return json.loads(self.assignment["document"])["name"]

    def tell(self, client: socket.socket) -> None:
        try:
            while True:
                if not self.silent:
                    client.sendall(
                        b"nonsense\n" if self.name.startswith("rude") else status(self.assignment, self.since)
                    )
                time.sleep(INTERVAL_SECONDS)
        except OSError:
            client.close()

    def hear(self, client: socket.socket) -> None:
        try:
            for line in client.makefile("rb"):
                assignment = json.loads(line)
                draft = self.path.with_suffix(".new")
                draft.write_bytes(line.strip())
                draft.replace(self.path)
                self.assignment = assignment
        except OSError:
            client.close()


def main() -> None:
    worker = Worker(Path(sys.argv[sys.argv.index("--assignment") + 1]))
    if worker.name.startswith("crashing"):
        sys.exit(3)
    if worker.name.startswith("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def fall_silent(*_: object) -> None:
        worker.silent = True

    signal.signal(signal.SIGUSR1, fall_silent)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[sys.argv.index("--socket") + 1])
    listener.listen(8)
    while True:
        client, _ = listener.accept()
        for work in (worker.tell, worker.hear):
            threading.Thread(target=work, args=(client,), daemon=True).start()


main()
