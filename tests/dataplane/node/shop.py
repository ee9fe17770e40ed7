"""A source and a destination of one pipeline, and what is written and read there."""

from collections.abc import Callable

from tests.conftest import Database
from tests.dataplane.node.documents import connection
from tests.dataplane.node.plane import Node, Plane, eventually, rows

from contracts.v2 import PipelineDocument

QUERY = "SELECT id, note FROM public.orders ORDER BY id"


class Shop:
    """A source and a destination, and what is written and read there."""

    def __init__(self, plane: Plane, make_database: Callable[[str], Database]) -> None:
        self.plane = plane
        self.source, self.sink = make_database("shop"), make_database("warehouse")
        self.source.execute("CREATE TABLE public.orders (id int PRIMARY KEY, note text)")
        self.source.execute("INSERT INTO public.orders VALUES (1, 'first')")
        self.connections = [
            connection("shop", port=self.source.port, database=self.source.name),
            connection("warehouse", port=self.sink.port, database=self.sink.name),
        ]

    async def publish(self, *pipelines: PipelineDocument, without: tuple[str, ...] = ()) -> None:
        await self.plane.publish(*self.connections, *pipelines, without=without)

    def insert(self, number: int) -> None:
        self.source.execute("INSERT INTO public.orders VALUES (%s, 'more')", number)

    def equal(self) -> bool:
        return rows(self.source.conninfo, QUERY) == rows(self.sink.conninfo, QUERY)

    async def settles(self, node: Node) -> None:
        await eventually(self.equal, why=lambda: node.log[-3000:] + worker_logs(node))

    def slots(self) -> int:
        return len(self.source.execute("SELECT 1 FROM pg_replication_slots WHERE database = current_database()"))


def worker_logs(node: Node) -> str:
    return "".join(path.read_text()[-3000:] for path in (node.folder / "run").glob("*.log"))
