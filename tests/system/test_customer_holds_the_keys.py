"""What is the customer's alone: a signature, a rotated secret, heads of the audit log and evidence, on a whole Pointsman."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.system.databases import ROLE, Databases, Pair
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


@pytest.fixture
def policy(stack: Stack) -> Iterator[Path]:
    """The node's policy, which is put back afterwards."""
    path = stack.folder / "nodes" / "node-1" / "policy.toml"
    before = path.read_text()
    yield path
    path.write_text(before)


def test_only_what_the_customer_signed_runs_and_describe_says_why(
    stack: Stack, make_pair: Callable[[str], Pair], policy: Path, tmp_path: Path
) -> None:
    """Applied without a signature it stands still with a code and a way out; signed, its rows flow, and there is evidence of it."""
    pair = make_pair("signed")
    pair.source.execute("CREATE TABLE rows (id int PRIMARY KEY)")
    pair.source.execute("INSERT INTO rows VALUES (1)")
    key, manifest = tmp_path / "signing.nk", tmp_path / "pipeline.yaml"
    manifest.write_text(pair.manifest("public.rows"))
    public = stack.cli("keys", "create", "--out", str(key), "-o", "json").json["public_key"]
    policy.write_text(policy.read_text() + f'\n[documents]\nsigned_by = ["{public}"]\n')

    def code() -> str | None:
        found: str | None = stack.pipeline(pair.name)["status"]["code"]
        return found

    stack.cli("apply", "-f", str(manifest))
    eventually(lambda: code() == "policy_signature_missing", within=30, what="the refusal")
    assert "pointsman apply --sign" in stack.cli("describe", "pipeline", pair.name).out
    stack.cli("apply", "-f", str(manifest), "--sign", str(key))
    stack.wait(pair.name)
    eventually(lambda: pair.equal("rows"), within=30, what="the row")

    report = tmp_path / "residency"
    shown = stack.cli("audit", "residency", pair.name, "--out", str(report), "-o", "json").json
    assert {each["node"] for each in shown["carriers"]} == {"node-1"}
    assert all(each["policy"] for each in shown["carriers"])
    assert shown["routes"][-1]["customers_key"] == public
    with stack.api() as api:
        audit_key = api.get("/audit/key").json()["key"]
    assert stack.cli("audit", "verify-residency", str(report), "--key", audit_key).code == 0

    kept, node = tmp_path / "kept.jsonl", stack.folder / "nodes" / "node-1"

    def heads() -> int:
        done = stack.cli("node", "checkpoints", "--folder", str(node), "--out", str(kept), "-o", "json")
        return int(done.json["checkpoints"])

    eventually(heads, within=60, what="a head of the audit log on the node", every=1.0)
    assert stack.cli("audit", "verify", "--checkpoint", str(kept), "--key", audit_key).code == 0


def test_a_rotated_password_is_taken_up_without_a_restart(
    stack: Stack, make_pair: Callable[[str], Pair], databases: Databases, policy: Path
) -> None:
    """A secret that Kubernetes mounts is exchanged and the old password dies: rows go on, through the same worker process."""
    pair = make_pair("rotated")
    pair.source.execute("CREATE TABLE rows (id int PRIMARY KEY)")
    policy.write_text(policy.read_text().replace('"file:*"', '"file:*", "k8s:*"'))
    with databases.superuser() as server:
        server.execute("CREATE ROLE rotating LOGIN REPLICATION PASSWORD 'first-password'")
        server.execute(f"GRANT {ROLE} TO rotating")
        _mount(stack.secrets, "..2026_1", "first-password")
        manifest = pair.manifest("public.rows").replace(f"user: {ROLE}", "user: rotating", 1)  # the source
        stack.apply(manifest.replace(f"file:{pair.secret}", "k8s:rotating/password", 1))
        stack.wait(pair.name)
        [worker] = stack.workers(pair.name)
        server.execute("ALTER ROLE rotating PASSWORD 'second-password'")
        _mount(stack.secrets, "..2026_2", "second-password")
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'rotating'")
    pair.source.execute("INSERT INTO rows VALUES (1)")
    eventually(lambda: pair.equal("rows"), within=60, what="the row after the rotation")
    assert [each.pid for each in stack.workers(pair.name)] == [worker.pid]


def _mount(secrets: Path, version: str, password: str) -> None:
    """Write a version of a secret as the kubelet does, and exchange it whole."""
    mount = secrets / "rotating"
    (mount / version).mkdir(parents=True)
    (mount / version / "password").write_text(password)
    (mount / ".data_tmp").symlink_to(version)
    os.replace(mount / ".data_tmp", mount / "..data")
    if not (mount / "password").is_symlink():
        (mount / "password").symlink_to("..data/password")
