# Everything that this project runs, one recipe each; CI calls the same ones.

# What the README promises: the quick tests, in a few minutes
test *ARGS:
    uv run pytest -q -m "not system and not kafka" {{ARGS}}

# Real servers and processes of both planes, with outages and kills
system *ARGS:
    uv run pytest -q -m system {{ARGS}}

# Kafka as an end of pipelines, against a real broker that Maven brings and Java runs
kafka *ARGS:
    uv run pytest -q -m kafka {{ARGS}}

# Sources, sinks and the whole way of a row on another PostgreSQL, which the system's packages installed
postgres VERSION *ARGS:
    POINTSMAN_TEST_POSTGRES={{VERSION}} uv run pytest -q tests/dataplane/sources tests/dataplane/sinks tests/system/test_the_way_of_a_row.py {{ARGS}}

# Format, style and the layers
lint:
    uv run ruff format --check
    uv run ruff check
    uv run lint-imports

# Strict static types
types:
    uv run mypy

# All that must hold before a commit
check: lint types test

# Everything that CI runs, with its time limits and its summary
ci:
    bash .ci/run

# Golden files of messages and streams of events that have none yet; those that exist never change
golden:
    uv run python -m tests.contracts.write_golden_files
    uv run python -m tests.histories.record

# The pages that are made from the code
docs:
    uv run python -m pointsman.errors_page > docs/reference/errors.md
    uv run python -m pointsman.checks_page > docs/reference/checks.md

# Everything under faults from a printed seed, for so many minutes: `just chaos --minutes 6 --seed 7`
chaos *ARGS:
    uv run python -m tests.chaos {{ARGS}}

# Break a rule at a time in a copy of the tree, and show which suite notices
mutations *ARGS:
    uv run python -m tests.chaos.mutations {{ARGS}}

# Lives of the pure core on a virtual clock, from seeds: `just simulate --runs 10000 --seed 1`
simulate *ARGS:
    uv run python -m tests.dataplane.worker.simulation {{ARGS}}

# Side by side with peers, in one run; all of them with one summary: `just bench all` (`--resume` after an interruption)
bench NAME *ARGS:
    uv run python -m bench.{{NAME}} {{ARGS}}

# Rows flow from one PostgreSQL to another while the control plane dies
demo *ARGS:
    uv run pointsman demo {{ARGS}}
