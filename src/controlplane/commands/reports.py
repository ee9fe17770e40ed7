"""What nodes report of their pipelines becomes events, but only where something changed.

Called by the channel for each report and heartbeat that it has verified. Repeating a report changes nothing, so it may be
delivered twice. A report is believed only about pipelines of the reporting node's own data plane.
"""

from collections.abc import Sequence

from contracts import v2
from controlplane.access.roles import Principal, Role
from controlplane.commands import catalogue
from controlplane.commands.write_path import Attempt, Decision, Step, WritePath
from controlplane.domain import Pipeline, Placement
from controlplane.projection import Pool
from controlplane.store import EventStore


class Reports:
    """Takes reports for every tenant."""

    def __init__(self, store: EventStore, pool: Pool, write_path: WritePath) -> None:
        self._store = store
        self._pool = pool
        self._write_path = write_path

    def report(self, tenant: str, data_plane: str, node: str, statuses: Sequence[v2.PipelineStatus]) -> None:
        """Record what a node observes of its pipelines; delete those whose removal it has finished.

        Raises:
            Refused: write_conflict or database_unavailable; the report may be repeated.
        """
        if not statuses:
            return
        # The newest of several about one pipeline is the last one: a node reports in order.
        newest = {status.pipeline: status for status in statuses}
        principal = Principal(tenant, Role.OPERATOR, f"node:{node}")

        def decide(attempt: Attempt) -> Decision:
            return Decision(steps=self._steps(attempt, data_plane, node, newest), body={})

        self._write_path.run(principal, decide)

    def reconciled(self, tenant: str, data_plane: str, node: str, status: v2.ReconcileStatus) -> None:
        """Record how the comparison of a table's two ends stands.

        Raises:
            Refused: write_conflict or database_unavailable; the report may be repeated.
        """
        principal = Principal(tenant, Role.OPERATOR, f"node:{node}")

        def decide(attempt: Attempt) -> Decision:
            found = catalogue.read_pipelines(self._pool, attempt.tenant, [status.pipeline]).get(status.pipeline)
            if found is None or found.spec is None or found.spec.data_plane != data_plane:
                return Decision(steps=[], body={})
            placement = attempt.load(Placement.of(attempt.tenant, status.pipeline, data_plane))
            events = placement.report_reconcile(attempt.context, data_plane, node, status)
            return Decision(steps=[Step(placement, events)] if events else [], body={})

        self._write_path.run(principal, decide)

    def _steps(
        self, attempt: Attempt, data_plane: str, node: str, statuses: dict[str, v2.PipelineStatus]
    ) -> list[Step]:
        pipelines = {
            name: pipeline
            for name, pipeline in catalogue.read_pipelines(self._pool, attempt.tenant, list(statuses)).items()
            if pipeline.spec is not None and pipeline.spec.data_plane == data_plane
        }
        fresh = [Placement.of(attempt.tenant, name, data_plane) for name in pipelines]
        placements = dict(zip(pipelines, self._store.load_last(fresh), strict=True))
        steps = []
        for name, pipeline in pipelines.items():
            events = placements[name].report(attempt.context, data_plane, node, statuses[name])
            if events:
                steps.append(Step(placements[name], events))
            if _is_removed(pipeline, statuses[name]):
                current = attempt.load(Pipeline.new(attempt.tenant, name))
                if _is_removed(current, statuses[name]):
                    steps.append(Step(current, current.delete(attempt.context)))
        return [step for step in steps if step.events]


def _is_removed(pipeline: Pipeline, status: v2.PipelineStatus) -> bool:
    """Say whether the node has finished a removal that is still wanted, and has done it for the newest generation."""
    return (
        pipeline.run is v2.RunState.REMOVED
        and status.phase is v2.Phase.REMOVED
        and status.observed_generation == pipeline.generation
    )
