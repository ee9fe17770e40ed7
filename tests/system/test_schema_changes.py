"""A pipeline that stops at a changed table, as a stranger meets it: through the API and the real CLI."""

from collections.abc import Callable

import pytest
from tests.system.databases import Pair
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


def test_a_pipeline_that_pauses_at_a_new_column_goes_on_when_somebody_resumes_it(
    stack: Stack, make_pair: Callable[[str], Pair]
) -> None:
    """It says which table and column; a restart changes nothing; a resume carries the column."""
    pair = make_pair("drift")
    pair.source.execute("CREATE TABLE state (id int PRIMARY KEY, note text)")
    pair.source.execute("INSERT INTO state VALUES (1, 'a')")
    manifest = pair.manifest("public.state")
    stack.apply(manifest.replace("drift-sink}\n", "drift-sink, on_schema_change: pause}\n"))
    stack.wait(pair.name)
    pair.source.execute("ALTER TABLE state ADD more text")
    pair.source.execute("INSERT INTO state VALUES (2, 'b', 'x')")

    def stopped() -> bool:
        status = stack.pipeline(pair.name)["status"]
        where = (status["phase"], status["code"], status["table"], status["column"])
        return where == ("degraded", "schema_changed", "public.state", "more")

    eventually(stopped, within=30, what="schema_changed")
    stack.cli("restart", "pipeline", pair.name)
    generation = stack.pipeline(pair.name)["generation"]
    eventually(
        lambda: stack.pipeline(pair.name)["status"]["observed_generation"] == generation and stopped(),
        within=30,
        what="schema_changed after a restart",
    )
    stack.cli("resume", "pipeline", pair.name)
    stack.wait(pair.name)
    eventually(lambda: pair.equal("state"), within=30, what="equal with the new column")
