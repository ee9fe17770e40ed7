"""PostgreSQL itself keeps tenants apart: what a forgotten filter, a reused connection or a wrong role would leak, is not there."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from tests.conftest import BINARIES
from tests.controlplane.conftest import Served, Tenant, make_settings

from controlplane import row_security, schema
from controlplane.app import Database, make_pool
from controlplane.projection import Pool
from controlplane.readmodels import queries
from controlplane.row_security import DatabaseRole, RightsMissingError, Scope, role_name, scoped
from controlplane.store import EventStore

READ = ("audit_entries", "audit_heads", "resources", "telemetry_nodes", "telemetry_pipelines")
TENANTS_OF: LiteralString = "SELECT DISTINCT tenant::text FROM {}"


@pytest.fixture
def neighbours(served: Served, shop: Tenant, make_tenant: Callable[[], Tenant]) -> tuple[Tenant, Tenant]:
    """Two tenants with documents, and telemetry of both."""
    other = make_tenant()
    other.make_documents()
    with served.administrator() as connected:
        for tenant in (shop, other):
            connected.execute(
                "INSERT INTO telemetry_nodes (tenant, data_plane, node, key, sequence, at, started_at, agent_version, contract)"
                " VALUES (%s, 'local', 'n', 'U', 1, now() - interval '1 day', now(), '0', 2)",
                [tenant.id],
            )
            connected.execute(
                "INSERT INTO telemetry_pipelines (tenant, pipeline, data_plane, node, at, numbers)"
                " VALUES (%s, 'orders', 'local', 'n', now(), '{}')",
                [tenant.id],
            )
    return shop, other


@pytest.fixture
def reader(served: Served) -> Iterator[Pool]:
    """A pool with the one connection that the API's role has here."""
    with make_pool(served.settings.database, DatabaseRole.API, connections_max=1) as pool:
        yield pool


def tenants_in(connection: Any, table: str) -> set[str]:
    """What a SELECT without any filter finds."""
    return {row[0] for row in connection.execute(sql.SQL(TENANTS_OF).format(sql.Identifier(table)))}


def test_a_read_without_a_filter_sees_nothing(neighbours: tuple[Tenant, Tenant], reader: Pool) -> None:
    """The API's role that names no tenant finds every table empty, and most tables closed."""
    with reader.connection() as connection:
        for table in READ:
            assert tenants_in(connection, table) == set(), table
        for table in ("stored_events", "catalogue", "idempotency_records", "channel_documents", "snapshots"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(sql.SQL("SELECT FROM {}").format(sql.Identifier(table)))


def test_a_read_that_forgets_its_filter_sees_its_own_tenant_only(
    neighbours: tuple[Tenant, Tenant], reader: Pool
) -> None:
    """Whatever the statement asks for."""
    for tenant in neighbours:
        with reader.connection() as connection, scoped(connection, Scope(tenant=tenant.id), read_only=True):
            for table in READ:
                assert tenants_in(connection, table) == {tenant.id}, table
            other = next(each for each in neighbours if each is not tenant)
            assert queries.page(connection, queries.Pipeline, other.id, after="", limit=9) == []


@pytest.mark.parametrize("end", ["commit", "refusal", "broken statement"])
def test_a_connection_that_is_used_again_carries_no_tenant_over(
    neighbours: tuple[Tenant, Tenant], reader: Pool, end: str
) -> None:
    """However the request before it ended, the next one begins without a tenant, on the same connection."""
    shop, other = neighbours
    with reader.connection() as connection:
        before = connection.info.backend_pid
    try:
        with reader.connection() as connection, scoped(connection, Scope(tenant=shop.id), read_only=True):
            assert tenants_in(connection, "resources") == {shop.id}
            if end == "refusal":
                raise LookupError
            if end == "broken statement":
                connection.execute("SELECT 1 / 0")
    except (LookupError, psycopg.DataError):
        pass
    with reader.connection() as connection:
        assert connection.info.backend_pid == before
        assert tenants_in(connection, "resources") == set()
    with reader.connection() as connection, scoped(connection, Scope(tenant=other.id), read_only=True):
        assert tenants_in(connection, "resources") == {other.id}


def test_a_presented_key_shows_itself_and_nothing_else(neighbours: tuple[Tenant, Tenant], reader: Pool) -> None:
    """Before a request is authenticated, nothing but the key that it names can be read."""
    key_id = neighbours[0].key.split("_")[1]
    with reader.connection() as connection, scoped(connection, Scope(key_id=key_id), read_only=True):
        assert connection.execute("SELECT kind, name FROM resources").fetchall() == [("ApiKey", key_id)]
        assert tenants_in(connection, "audit_entries") == set()


def test_the_operator_sees_that_tenants_exist_and_nodes_live(neighbours: tuple[Tenant, Tenant], reader: Pool) -> None:
    """No connection, pipeline, key or event of theirs."""
    with reader.connection() as connection, scoped(connection, Scope(operator=True), read_only=True):
        kinds = {kind for (kind,) in connection.execute("SELECT DISTINCT kind FROM resources").fetchall()}
        assert {"Tenant"} <= kinds <= {"Tenant", "Placement"}
        assert {each.id for each in neighbours} <= tenants_in(connection, "telemetry_nodes")
        assert tenants_in(connection, "telemetry_pipelines") == tenants_in(connection, "audit_entries") == set()


def test_a_write_keeps_to_its_tenant(served: Served, neighbours: tuple[Tenant, Tenant]) -> None:
    """The write path neither sees nor changes another tenant's documents, and may not write in another's name."""
    shop, other = neighbours
    pool = served.control_plane.database.writer
    with pool.connection() as connection:
        assert tenants_in(connection, "catalogue") == set()
    with pool.connection() as connection, scoped(connection, Scope(tenant=shop.id)):
        assert tenants_in(connection, "catalogue") == {shop.id}
        assert connection.execute("DELETE FROM catalogue WHERE tenant = %s", [other.id]).rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
            connection.execute("INSERT INTO catalogue VALUES (%s, 'Pipeline', 'x', '{}')", [other.id])


def test_no_part_of_the_process_can_change_the_log(served: Served, neighbours: tuple[Tenant, Tenant]) -> None:
    """The write path appends and can do nothing else; what derives tables cannot even read."""
    database = served.control_plane.database
    with database.writer.connection() as connection:
        assert connection.execute("SELECT count(*) > 0 FROM stored_events").fetchone() == (True,)
        assert connection.execute("UPDATE stored_events SET topic = 'x'").rowcount == 0
        for statement in ("DELETE FROM stored_events", "TRUNCATE stored_events", "UPDATE snapshots SET topic = ''"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
    with database.projector.connection() as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT FROM stored_events")


def test_every_table_with_a_tenant_is_guarded_even_from_its_owner(
    served: Served, neighbours: tuple[Tenant, Tenant]
) -> None:
    """A table that somebody adds is guarded without anybody having to think of it."""
    with served.administrator() as connected:
        rows = connected.execute(
            "SELECT relname, relrowsecurity AND relforcerowsecurity FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attname = 'tenant'"
        ).fetchall()
    assert len(rows) > 10
    assert [table for table, guarded in rows if not guarded] == []
    with psycopg.connect(served.settings.database.conninfo()) as owner:
        for table in (*READ, "catalogue", "idempotency_records"):
            assert tenants_in(owner, table) == set(), table


def test_the_roles_own_nothing_and_have_no_way_in(served: Served) -> None:
    """None can log in, make roles or databases, or pass by row-level security."""
    names = [role_name(served.settings.database.name, role) for role in DatabaseRole]
    with served.administrator() as connected:
        rights = connected.execute(
            "SELECT DISTINCT rolsuper, rolcanlogin, rolcreaterole, rolcreatedb, rolbypassrls FROM pg_roles"
            " WHERE rolname = ANY(%s)",
            [names],
        ).fetchall()
        owned = connected.execute(
            "SELECT count(*) FROM pg_class JOIN pg_roles r ON r.oid = relowner WHERE r.rolname = ANY(%s)", [names]
        ).fetchone()
    assert (rights, owned) == ([(False,) * 5], (0,))


def test_guarding_again_changes_nothing_and_waits_for_nobody(served: Served, shop: Tenant, reader: Pool) -> None:
    """A process that starts beside others takes no lock that their reads hold up."""
    policies = "SELECT tablename, policyname FROM pg_policies ORDER BY 1, 2"
    with served.administrator() as connected:
        before = connected.execute(policies).fetchall()
    with reader.connection() as connection, scoped(connection, Scope(tenant=shop.id), read_only=True):
        tenants_in(connection, "resources")  # holds its lock until the transaction ends
        with psycopg.connect(served.settings.database.conninfo()) as owner:
            owner.execute("SET lock_timeout = '500ms'")
            row_security.secure(owner)
    with served.administrator() as connected:
        assert connected.execute(policies).fetchall() == before


def test_a_user_that_may_not_make_roles_is_told_what_has_to_be_run(
    postgres_server: Any, database: Any, folder: Path
) -> None:
    """An administrator runs it once; from then on the user needs no right but to its own database."""
    user = f"{database.name}_plain"
    database.execute(f'CREATE ROLE "{user}" LOGIN')
    database.execute(f'ALTER DATABASE "{database.name}" OWNER TO "{user}"')
    settings = make_settings(postgres_server, database.name, folder, user).database
    with pytest.raises(RightsMissingError) as refused:
        Database(settings)
    database.execute(str(refused.value))
    Database(settings).close()


def test_a_policy_that_is_no_longer_wanted_goes(postgres_server: Any, database: Any, folder: Path) -> None:
    """An older version's policy or right does not stay behind; somebody else's policy does."""
    settings = make_settings(postgres_server, database.name, folder).database
    store = EventStore(settings)
    with make_pool(settings) as pool:
        schema.migrate(pool, store)
        api = role_name(database.name, DatabaseRole.API)
        database.execute(f'CREATE POLICY pointsman_old ON resources FOR SELECT TO "{api}" USING (true)')
        database.execute(f'CREATE POLICY theirs ON resources FOR SELECT TO "{api}" USING (false)')
        database.execute(f'GRANT SELECT ON catalogue TO "{api}"')
        schema.migrate(pool, store)
    store.close()
    names = {row[0] for row in database.execute("SELECT policyname FROM pg_policies WHERE tablename = 'resources'")}
    assert "theirs" in names
    assert "pointsman_old" not in names
    assert database.execute(f"SELECT has_table_privilege('{api}', 'catalogue', 'SELECT')") == [(False,)]


def test_roles_of_two_databases_of_a_server_are_never_the_same() -> None:
    """Nor too long, nor anything that would have to be quoted in a connection's options."""
    names = ["pointsman", "Pointsman", "point-sman", "p" * 63, "p" * 62, "ü", "a b", 'a"b']
    made = {role_name(name, role) for name in names for role in DatabaseRole}
    assert len(made) == len(names) * len(DatabaseRole)
    assert all(len(name) <= 63 and name.replace("_", "").isalnum() and name.isascii() for name in made)
    assert role_name("pointsman", DatabaseRole.API) == "pointsman_api"


def test_a_backup_holds_every_tenant(served: Served, neighbours: tuple[Tenant, Tenant]) -> None:
    """`pg_dump` takes the role that is made for it, because the tables' owner sees no row."""
    own = served.settings.database
    role = role_name(own.name, DatabaseRole.BACKUP)
    command = [str(BINARIES / "pg_dump"), "-h", own.host, "-p", str(own.port), "-U", own.user, "--role", role]
    dumped = subprocess.run(
        [*command, "--enable-row-security", own.name], capture_output=True, text=True, check=True
    ).stdout
    for tenant in neighbours:
        assert f"\t{tenant.id}\tPipeline\torders\tt\t" in dumped
    assert "COPY public.stored_events" in dumped
