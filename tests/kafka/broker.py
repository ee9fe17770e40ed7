"""One Kafka broker in KRaft mode, as a child process on free ports: the real one, from Maven's repository.

`fetch` brings its jars once, with Maven, into a folder that git does not know. Java 17 or newer runs them.
"""

import base64
import contextlib
import shutil
import subprocess
import time
from pathlib import Path
from uuid import uuid4

from pointsman.local import processes

PROJECT = Path(__file__).parent
JARS = PROJECT / "target" / "lib"
START_SECONDS_MAX = 60.0
MEMORY = "-Xmx384m"


def fetch() -> None:
    """Download the jars unless they are there.

    Raises:
        RuntimeError: Java or Maven is missing, or Maven failed.
    """
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} is not installed; on Debian: apt install openjdk-17-jre-headless maven")
    if (JARS / ".whole").exists():
        return
    copy = ["dependency:copy-dependencies", f"-DoutputDirectory={JARS}"]
    made = subprocess.run(
        ["mvn", "-B", "-ntp", "-q", "-f", str(PROJECT / "pom.xml"), *copy], capture_output=True, check=False
    )
    if made.returncode:
        raise RuntimeError(f"Maven could not bring Kafka: {made.stdout.decode(errors='replace')[-2000:]}")
    (JARS / ".whole").touch()


class Broker:
    """A broker whose files lie in `folder`. It can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = processes.free_port()
        self._controller_port = processes.free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def create(self) -> None:
        """Write the settings and format the storage."""
        fetch()
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller_port}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": self.folder / "data",
            "num.partitions": 3,
            "default.replication.factor": 1,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 2,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 2,
            "share.coordinator.state.topic.replication.factor": 1,
            "group.initial.rebalance.delay.ms": 0,
            "auto.create.topics.enable": "false",
        }
        self._settings.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        cluster = base64.urlsafe_b64encode(uuid4().bytes).decode().rstrip("=")
        made = subprocess.run(
            [*self._java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._settings)],
            capture_output=True,
            check=False,
        )
        if made.returncode:
            raise RuntimeError(f"the storage could not be formatted: {made.stderr.decode(errors='replace')[-2000:]}")

    def start(self) -> None:
        """Start the broker and wait until it answers."""
        log = self.folder / "broker.log"
        before = log.read_text().count("Kafka Server started") if log.exists() else 0
        self._process = processes.start([*self._java, "kafka.Kafka", str(self._settings)], log=log)
        end = time.monotonic() + START_SECONDS_MAX
        while log.read_text(errors="replace").count("Kafka Server started") == before:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the broker did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End the broker as a power loss of its process would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def _settings(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _java(self) -> list[str]:
        # The quick compiler alone: a broker lives for seconds here.
        return ["java", MEMORY, "-XX:TieredStopAtLevel=1", "-cp", f"{JARS}/*"]
