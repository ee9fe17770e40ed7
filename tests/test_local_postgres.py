from pathlib import Path

from pointsman.local import postgres, processes


def test_a_server_keeps_its_rows_over_a_crash_and_asks_for_the_password_it_was_made_with(folder: Path) -> None:
    server = postgres.PostgresServer(folder, processes.free_port())
    server.create(password="s3cret")
    server.start()
    try:
        import psycopg

        with psycopg.connect(server.conninfo(password="s3cret"), autocommit=True) as connection:
            connection.execute("CREATE TABLE t AS SELECT 7 AS n")
        server.stop(immediate=True)
        server.start()
        with psycopg.connect(server.conninfo(password="s3cret")) as connection:
            assert connection.execute("SELECT n FROM t").fetchone() == (7,)
    finally:
        server.stop()


def test_a_fresh_database_can_be_captured_from(database) -> None:  # type: ignore[no-untyped-def]
    assert database.execute("SHOW wal_level") == [("logical",)]
