"""What `up` makes in a folder once: keys, the control plane's database, a tenant, a data plane, and nodes that join it.

Every step looks first whether it has been done, and leaves something whole or nothing at all; so a start that was killed
at any moment is simply started again. Secrets go from the process that makes them into files that only their owner may
read, never through an output, an argument or a variable.
"""

import contextlib
import secrets
from pathlib import Path

import psycopg
from psycopg import sql

from pointsman.client import Client
from pointsman.local.components import DATA_PLANE, DATABASE, LEAF, TENANT, Parts
from pointsman.local.layout import Layout, write_whole
from pointsman.problems import ApiProblem, Problem

SECRET_BYTES = 32


def _write_once(path: Path, secret: str) -> None:
    if not path.exists():
        write_whole(path, secret + "\n")


def make_keys(layout: Layout) -> None:
    """Make the operator's key, the database's passwords and the channel's keys, where they are missing."""
    from controlplane.channel import keys

    _write_once(layout.operator_key_file, "pmo_" + secrets.token_urlsafe(SECRET_BYTES))
    _write_once(layout.keys / "postgres.password", secrets.token_urlsafe(SECRET_BYTES))
    _write_once(layout.keys / "database.password", secrets.token_urlsafe(SECRET_BYTES))
    # One life of the folder: it makes the idempotency keys of what is asked of the API only once.
    _write_once(layout.keys / "founding.id", secrets.token_hex(16))
    keys.create(layout.keys)


def read_secret(path: Path) -> str:
    """Return what a key file holds."""
    return path.read_text().strip()


def make_postgres(parts: Parts) -> None:
    """Make the control plane's server, if there is none. Every connection has to give a password."""
    server = parts.postgres_server()
    server.folder.mkdir(exist_ok=True, mode=0o700)
    server.create(password=read_secret(parts.layout.keys / "postgres.password"))


def make_database(parts: Parts) -> None:
    """Make the control plane's role and database. The server runs; a role that exists gets the password of the file."""
    server = parts.postgres_server()
    administrator = server.conninfo(password=read_secret(parts.layout.keys / "postgres.password"))
    name = sql.Identifier(DATABASE)
    with psycopg.connect(administrator, autocommit=True) as connection:
        # Encrypted here, so that the password itself can appear in no log of the server.
        password = read_secret(parts.layout.keys / "database.password").encode()
        encrypted = connection.pgconn.encrypt_password(password, DATABASE.encode(), b"scram-sha-256").decode()
        if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [DATABASE]).fetchone() is None:
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
        # It makes the roles that its connections take; it owns its own database and reaches nothing else.
        connection.execute(sql.SQL("ALTER ROLE {} CREATEROLE PASSWORD {}").format(name, sql.Literal(encrypted)))
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))
            connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))


def make_tenant(parts: Parts) -> None:
    """Make the tenant and keep its first API key. Asked again, the API answers with the same key."""
    layout = parts.layout
    if layout.api_key_file.exists():
        return
    founding = read_secret(layout.keys / "founding.id")
    with Client(parts.api_url, read_secret(layout.operator_key_file)) as client:
        answer = client.post("/v1/tenants", {"name": TENANT}, idempotency_key=f"{founding}-tenant")
    _write_once(layout.api_key_file, str(answer.resource["api_key"]))


def make_data_plane(parts: Parts) -> None:
    """Make the data plane that the nodes of this machine belong to."""
    with Client(parts.api_url, read_secret(parts.layout.api_key_file)) as client:
        with contextlib.suppress(ApiProblem):
            client.get("data-planes", DATA_PLANE)
            return
        client.put("data-planes", DATA_PLANE, {"model": "self_managed"})


def has_joined(layout: Layout, node: str) -> bool:
    """Say whether a node of this machine is a member of the data plane."""
    from dataplane.config import FILE_NAME

    return (layout.node(node) / FILE_NAME).exists()


def join(parts: Parts, node: str) -> None:
    """Let a node join, if it has not. The first one makes the leaf's folder, the others use the same leaf."""
    if has_joined(parts.layout, node):
        return
    from dataplane.link import enrolment

    layout = parts.layout
    with Client(parts.api_url, read_secret(layout.api_key_file)) as client:
        token = str(client.post(f"/v1/data-planes/{DATA_PLANE}/join-tokens", {}).resource["token"])
    try:
        enrolment.join(
            layout.node(node),
            api=parts.api_url,
            token=token,
            node=node,
            leaf_folder=layout.root / LEAF,
            leaf_port=parts.ports.get(LEAF),
            secrets_folder=layout.secrets,
            profile="local",
        )
    except enrolment.JoinFailed as failed:
        raise Problem(failed.code, f"{node} could not join: {failed}", hint=failed.hint) from None
