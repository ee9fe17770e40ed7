"""What nodes report: transitions become events, repetitions do not, and the status is what was acknowledged."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.controlplane.conftest import Served, Tenant, connection, pipeline

from contracts import v2
from contracts.codes import Code
from contracts.reconciling import ReconcileState

SINCE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def status(phase: v2.Phase = v2.Phase.STREAMING, generation: int = 1, **changes: Any) -> v2.PipelineStatus:
    return v2.PipelineStatus(
        pipeline=changes.pop("pipeline", "orders"),
        epoch=1,
        observed_generation=generation,
        phase=phase,
        since=changes.pop("since", SINCE),
        **changes,
    )


class Node:
    """A node that reports straight to the command, as the channel does with what it has verified."""

    def __init__(self, served: Served, tenant: Tenant, name: str = "node-1", data_plane: str = "local") -> None:
        self.served = served
        self.tenant = tenant
        self.name = name
        self.data_plane = data_plane

    def report(self, *statuses: v2.PipelineStatus) -> dict[str, Any]:
        """Report, and return the pipeline as the API shows it then."""
        self.served.control_plane.reports.report(self.tenant.id, self.data_plane, self.name, statuses)
        return self.shown()

    def shown(self, pipeline_name: str = "orders") -> dict[str, Any]:
        latest = self.served.control_plane.log.latest()
        found: dict[str, Any] = self.tenant.api.get(
            f"/v1/pipelines/{pipeline_name}", params={"at_least": latest}
        ).json()
        return found

    def heartbeat(self, age: timedelta = timedelta(0)) -> None:
        """Write what the channel writes for a heartbeat."""
        at = datetime.now(UTC) - age
        with self.served.administrator() as connected:
            connected.execute(
                "INSERT INTO telemetry_nodes (tenant, data_plane, node, key, sequence, at, started_at, agent_version, contract)"
                " VALUES (%s, %s, %s, 'U', 1, %s, %s, '0.1.0', 2)"
                " ON CONFLICT (tenant, data_plane, node) DO UPDATE SET at = excluded.at",
                [self.tenant.id, self.data_plane, self.name, at, at],
            )

    def events(self) -> list[Any]:
        found: list[Any] = self.tenant.api.get(
            "/v1/pipelines/orders/events", params={"at_least": self.served.control_plane.log.latest()}
        ).json()["items"]
        return [each for each in found if each["kind"] == "Placement"]


@pytest.fixture
def node(served: Served, shop: Tenant) -> Node:
    return Node(served, shop)


def _ready(shown: dict[str, Any]) -> tuple[bool, str]:
    ready = next(each for each in shown["status"]["conditions"] if each["type"] == "Ready")
    assert shown["status"]["ready"] is (ready["status"] == "True")
    return shown["status"]["ready"], ready["reason"]


def test_before_any_report_a_pipeline_is_unscheduled(node: Node) -> None:
    """Nothing is green because it was sent."""
    shown = node.shown()
    assert shown["status"]["phase"] == "unscheduled"
    assert _ready(shown) == (False, "unscheduled")


def test_only_transitions_become_events(node: Node) -> None:
    """The same state again, a later position or progress are no events."""
    node.report(status(v2.Phase.SNAPSHOTTING, tables_total=2, tables_copied=0))
    node.report(status(v2.Phase.SNAPSHOTTING, tables_total=2, tables_copied=1))
    node.report(status(position=v2.Position(lsn=10, ordinal=1), since=SINCE + timedelta(seconds=1)))
    node.report(status(position=v2.Position(lsn=99, ordinal=2), since=SINCE + timedelta(seconds=1)))
    assert [each["data"]["phase"] for each in node.events()] == ["snapshotting", "streaming"]
    assert node.events()[0]["actor"] == "node:node-1"


def test_a_report_that_was_overtaken_is_passed_over(node: Node) -> None:
    """Neither an older generation nor an earlier moment of the same node brings back what is past."""
    node.tenant.put("/v1/pipelines/orders", pipeline(buffer={"type": "jetstream"})).raise_for_status()
    node.report(status(generation=2, since=SINCE + timedelta(seconds=9)))
    node.report(status(v2.Phase.PENDING, generation=1, since=SINCE + timedelta(seconds=10)))
    shown = node.report(status(v2.Phase.RETRYING, generation=2, since=SINCE, code=Code.SINK_UNREACHABLE))
    assert (shown["status"]["phase"], len(node.events())) == ("streaming", 1)


def test_a_pipeline_is_ready_when_a_node_that_lives_streams_the_newest_generation(node: Node) -> None:
    """All three must hold."""
    shown = node.report(status())
    assert _ready(shown) == (False, "node_silent")
    node.heartbeat()
    assert _ready(node.shown()) == (True, "streaming")
    node.tenant.api.post("/v1/pipelines/orders/restart").raise_for_status()
    assert _ready(node.shown()) == (False, "not_observed")
    node.report(status(generation=2, restarts=1))
    assert _ready(node.shown()) == (True, "streaming")
    node.heartbeat(age=timedelta(seconds=46))
    assert _ready(node.shown()) == (False, "node_silent")


def test_a_failure_is_shown_with_its_code_and_what_to_do(node: Node) -> None:
    """Only codes and names come up; the words are ours."""
    node.heartbeat()
    shown = node.report(
        status(v2.Phase.DEGRADED, code=Code.SINK_CONSTRAINT, sql_state="23514", table="public.orders", column="amount")
    )
    told = shown["status"]
    assert (told["code"], told["sql_state"], told["table"], told["column"]) == (
        "sink_constraint",
        "23514",
        "public.orders",
        "amount",
    )
    assert told["hint"]
    assert _ready(shown) == (False, "sink_constraint")
    degraded = next(each for each in told["conditions"] if each["type"] == "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "sink_constraint")


def test_a_pipeline_with_dead_letters_is_ready_and_degraded(node: Node) -> None:
    """Rows flow, so nobody waits for it in vain; some keys do not, so it is not plainly green."""
    node.heartbeat()
    shown = node.report(status(code=Code.DEAD_LETTERS))
    assert _ready(shown) == (True, "streaming")
    told = shown["status"]
    degraded = next(each for each in told["conditions"] if each["type"] == "Degraded")
    assert (told["phase"], told["code"], degraded["status"], degraded["reason"]) == (
        "streaming",
        "dead_letters",
        "True",
        "dead_letters",
    )
    assert "pointsman node dlq list" in told["hint"]
    node.report(status(since=SINCE + timedelta(seconds=9)))
    degraded = next(each for each in node.shown()["status"]["conditions"] if each["type"] == "Degraded")
    assert degraded["status"] == "False"


def test_a_node_is_believed_only_about_its_own_data_plane(served: Served, node: Node) -> None:
    """A node elsewhere, or of another tenant, changes nothing; nor does a report of what does not exist."""
    Node(served, node.tenant, data_plane="other").report(status())
    node.report(status(pipeline="nothing"))
    assert (node.shown()["status"]["phase"], node.events()) == ("unscheduled", [])


def test_a_removal_ends_when_the_node_has_cleaned_up(node: Node) -> None:
    """The pipeline goes with the report that acknowledges the newest generation, and not before."""
    node.report(status())
    node.tenant.api.delete("/v1/pipelines/orders", params={"cleanup": "true"}).raise_for_status()
    assert node.report(status(generation=2, since=SINCE + timedelta(seconds=1)))["run"] == "removed"
    gone = node.report(status(v2.Phase.REMOVED, generation=2, since=SINCE + timedelta(seconds=2)))
    assert gone["code"] == "not_found"
    node.report(status(v2.Phase.REMOVED, generation=2, since=SINCE + timedelta(seconds=2)))
    made = node.tenant.put("/v1/pipelines/orders", pipeline())
    assert (made.status_code, made.json()["generation"]) == (201, 4)


def test_a_removed_phase_deletes_nothing_that_was_not_to_be_removed(node: Node) -> None:
    """A node cannot delete a pipeline."""
    assert node.report(status(v2.Phase.REMOVED))["run"] == "running"


def test_telemetry_is_shown_and_is_no_event(served: Served, node: Node) -> None:
    """Numbers come from the last heartbeat, with the time that it was."""
    node.report(status())
    with served.administrator() as connected:
        connected.execute(
            "INSERT INTO telemetry_pipelines (tenant, pipeline, data_plane, node, at, numbers)"
            " VALUES (%s, 'orders', 'local', 'node-1', now(), '{\"rows_total\": 7, \"lag_seconds\": 0.5}')",
            [node.tenant.id],
        )
    told = node.shown()["status"]["telemetry"]
    assert (told["rows_total"], told["lag_seconds"]) == (7, 0.5)
    assert told["at"]
    assert len(node.events()) == 1


def test_a_pipeline_that_only_looks_alive_is_not_green(node: Node) -> None:
    """It streams and its heartbeat comes, but its node says that nothing moves although there is a backlog."""
    node.heartbeat()
    assert _ready(node.report(status())) == (True, "streaming")
    shown = node.report(status(code=Code.NO_PROGRESS, since=SINCE + timedelta(minutes=2)))
    assert _ready(shown) == (False, "no_progress")
    degraded = next(each for each in shown["status"]["conditions"] if each["type"] == "Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "no_progress")
    assert _ready(node.report(status(since=SINCE + timedelta(minutes=3)))) == (True, "streaming")


def test_a_copy_that_is_refused_or_paused_is_never_green(node: Node) -> None:
    """Rows flow, but what was asked for was not done; and nothing is on its way while somebody has to say so."""
    node.heartbeat()
    refused = status(
        code=Code.BACKFILL_REFUSED, table="public.orders", column="note", since=SINCE + timedelta(minutes=1)
    )
    shown = node.report(refused)
    assert _ready(shown) == (False, "backfill_refused")
    assert (shown["status"]["table"], shown["status"]["column"]) == ("public.orders", "note")
    waits = status(v2.Phase.SNAPSHOTTING, code=Code.COPY_PAUSED, since=SINCE + timedelta(minutes=2))
    shown = node.report(waits)
    assert _ready(shown) == (False, "copy_paused")
    told = {each["type"]: each["status"] for each in shown["status"]["conditions"]}
    assert told == {"Ready": "False", "Progressing": "False", "Degraded": "False"}


def test_a_pause_says_what_it_will_cost(served: Served, node: Node) -> None:
    """How much the source keeps now, how fast that grows, and when the limit is reached; as far as it was measured."""
    api = node.tenant.api
    assert len(api.post("/v1/pipelines/orders/pause").json()["warnings"]) == 1
    api.post("/v1/pipelines/orders/resume")
    numbers = {"slot": {"status": "reserved", "retained_bytes": 2_000_000_000, "written_bytes_per_second": 1_000_000.0}}

    def paused() -> str:
        with served.administrator() as connected:
            connected.execute(
                "INSERT INTO telemetry_pipelines (tenant, pipeline, data_plane, node, at, numbers)"
                " VALUES (%s, 'orders', 'local', 'node-1', now(), %s)"
                " ON CONFLICT (tenant, pipeline) DO UPDATE SET numbers = excluded.numbers",
                [node.tenant.id, json.dumps(numbers)],
            )
        told = api.post("/v1/pipelines/orders/pause").json()["warnings"]
        api.post("/v1/pipelines/orders/resume")
        return " ".join(told)

    assert "2.0 GB now, and grows by about 3.6 GB an hour" in paused()
    assert "Nothing limits what it keeps" in paused()
    numbers["slot"]["limit_bytes"] = 9_200_000_000
    assert "its limit of 9.2 GB is reached in about 2 hours" in paused()
    assert "Nothing limits" not in paused()


@pytest.mark.parametrize("holder", ["another node", "another life of the agent"])
def test_a_report_that_newer_heartbeats_contradict_is_not_green(served: Served, node: Node, holder: str) -> None:
    """A node that has started again, or lost the pipeline to another, has to say first that it runs it."""
    node.heartbeat()
    assert _ready(node.report(status())) == (True, "streaming")
    life = datetime.now(UTC) - timedelta(days=1)
    told_by = ("node-2", None) if holder == "another node" else ("node-1", life.isoformat())
    with served.administrator() as connected:
        connected.execute(
            "INSERT INTO telemetry_pipelines (tenant, pipeline, data_plane, node, at, numbers)"
            " VALUES (%s, 'orders', 'local', %s, now(), jsonb_strip_nulls(jsonb_build_object('agent_started_at', %s::text)))",
            [node.tenant.id, *told_by],
        )
    assert _ready(node.shown()) == (False, "not_acknowledged")


def test_many_statuses_are_taken_in_one_commit(served: Served, shop: Tenant) -> None:
    """A heartbeat with many pipelines is one transaction, and takes as long as a few queries."""
    shop.put("/v1/connections/other", connection("other")).raise_for_status()
    for number in range(5):
        document = pipeline(source={"connection": "other", "tables": [f"public.t{number}"]})
        shop.put(f"/v1/pipelines/p{number}", document).raise_for_status()
    before = served.control_plane.log.latest()
    node = Node(served, shop)
    node.served.control_plane.reports.report(
        shop.id, "local", "node-1", [status(pipeline=f"p{number}") for number in range(5)]
    )
    logged = [each for each in served.control_plane.log.read(before) if each.tenant == shop.id]
    assert [each.type for each in logged] == ["PlacementReported"] * 5


def test_the_time_until_a_change_is_applied_is_measured(served: Served, node: Node) -> None:
    """From the change's event to the first report that observes it."""
    metrics = served.control_plane.metrics
    count = lambda: metrics.registry.get_sample_value("pointsman_change_to_applied_seconds_count")  # noqa: E731
    node.shown()
    before = count() or 0
    node.report(status())
    node.report(status(v2.Phase.RETRYING, code=Code.SINK_UNREACHABLE, since=SINCE + timedelta(seconds=1)))
    assert count() == before + 1


def test_a_comparison_is_told_when_it_begins_and_when_it_ends_and_once(node: Node) -> None:
    """Counts reach the status and the events; what comes late or again, or from another data plane, changes nothing."""

    def said(number: int, state: ReconcileState, **counts: int) -> v2.ReconcileStatus:
        return v2.ReconcileStatus(
            pipeline="orders", table="public.orders", number=number, repair=False, state=state, **counts
        )

    reports = node.served.control_plane.reports
    node.tenant.api.post("/v1/pipelines/orders/reconcile", json={"tables": ["public.orders"]}).raise_for_status()
    ended = said(1, ReconcileState.DONE, rows_compared=100, rows_missing=2, rows_extra=1)
    reports.reconciled(node.tenant.id, "elsewhere", "node-9", ended)
    assert node.shown()["status"]["reconciles"][0]["state"] == "waiting"
    for status_ in (said(1, ReconcileState.RUNNING), ended, said(1, ReconcileState.RUNNING), ended):
        reports.reconciled(node.tenant.id, "local", "node-1", status_)
    (shown,) = node.shown()["status"]["reconciles"]
    assert (shown["state"], shown["rows_compared"], shown["rows_missing"], shown["rows_extra"]) == ("done", 100, 2, 1)
    assert [each["data"]["state"] for each in node.events()] == ["running", "done"]
    node.tenant.api.post("/v1/pipelines/orders/reconcile").raise_for_status()
    assert {each["state"] for each in node.shown()["status"]["reconciles"]} == {"waiting"}
