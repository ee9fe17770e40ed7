"""A small control plane for tests of the command line: real HTTP on a free port, resources in memory, faults on demand."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from contracts import envelope
from contracts.audit import GENESIS, AuditEntry, Checkpoint, entry_hash
from contracts.envelope import Purpose
from contracts.keys import KeyPair, Role
from contracts.residency import Residency, seal

KEY = "pm_test_key"
TENANT = "11111111-2222-3333-4444-555555555555"
KINDS = {
    "members": "Member",
    "access-grants": "AccessGrant",
    "connections": "Connection",
    "pipelines": "Pipeline",
    "data-planes": "DataPlane",
    "nodes": "Node",
}
READ_ONLY = {"kind", "name", "generation", "revision", "created_at", "updated_at", "status"}

Answer = tuple[int, dict[str, Any] | None]


class FakeApi:
    """What the handler reads and the tests change."""

    def __init__(self) -> None:
        self.resources: dict[tuple[str, str], dict[str, Any]] = {}
        self.revision = 0
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.fault: Callable[[str, str], Answer | str | None] | None = None
        """Called first with method and path; an answer is given instead of ours, `hang up` closes the connection."""
        self.done: dict[str, Answer] = {}
        self.signing = KeyPair.generate(Role.ACCOUNT)
        self.entries: list[AuditEntry] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                api.requests.append((self.command, self.path, dict(self.headers)))
                answer = api.fault(self.command, self.path) if api.fault else None
                if answer == "hang up":
                    self.close_connection = True
                    return
                if answer == "hang up after":
                    api.answer(self.command, self.path, dict(self.headers), body)
                    self.close_connection = True
                    return
                status, value = answer or api.answer(self.command, self.path, dict(self.headers), body)  # type: ignore[misc]
                payload = b"" if value is None else json.dumps(value).encode()
                self.send_response(status)
                kind = "application/problem+json" if status >= 400 else "application/json"
                self.send_header("Content-Type", kind)
                if isinstance(value, dict) and "generation" in value:
                    self.send_header("ETag", f'"{value["generation"]}"')
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    # ---- What tests arrange ----

    def put(self, noun: str, name: str, **fields: Any) -> dict[str, Any]:
        """Store a resource as the real one shows it, and log an event."""
        self.revision += 1
        before = self.resources.get((noun, name))
        now = datetime.now(UTC).isoformat()
        resource = {
            "kind": KINDS.get(noun, noun),
            "name": name,
            **fields,
            "generation": (before or {"generation": 0})["generation"] + 1,
            "revision": self.revision,
            "created_at": before["created_at"] if before else now,
            "updated_at": now,
        }
        self.resources[noun, name] = resource
        self.log(str(resource["kind"]), name, "Configured")
        return resource

    def log(self, kind: str, name: str, type_: str) -> None:
        previous = self.entries[-1].hash if self.entries else GENESIS
        entry = AuditEntry(
            sequence=len(self.entries) + 1,
            event_id=len(self.entries) + 1,
            at=datetime.now(UTC).isoformat(),
            kind=kind,
            name=name,
            type=type_,
            actor="key:test",
            payload="{}",
            previous=previous,
        )
        self.entries.append(msgspec.structs.replace(entry, hash=entry_hash(TENANT, entry)))

    # ---- What it answers ----

    def answer(self, method: str, target: str, headers: dict[str, str], body: Any) -> Answer:
        split = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        if split.path in ("/livez", "/readyz"):
            return 200, {"status": "ok"}
        if headers.get("Authorization") != f"Bearer {KEY}":
            return problem(401, "unauthenticated", "No valid API key")
        key = headers.get("Idempotency-Key", "")
        if method != "GET" and key in self.done:
            return self.done[key]
        parts = split.path.strip("/").split("/")[1:]
        answered = self._get(parts, query) if method == "GET" else self._write(method, parts, query, body or {})
        if method != "GET":
            self.done[key] = answered
        return answered

    def _get(self, parts: list[str], query: dict[str, str]) -> Answer:
        after, limit = int(query.get("after", 0)), int(query.get("limit", 100))
        match parts:
            case ["audit", "checkpoint"]:
                return 200, {"checkpoint": self.checkpoint()}
            case ["audit", "key"]:
                return 200, {"key": self.signing.public}
            case ["audit", "entries"]:
                found = [e for e in self.entries if e.sequence > after][:limit]
                return 200, {"items": [msgspec.to_builtins(entry) for entry in found]}
            case ["audit", "residency", name]:
                body = Residency(
                    tenant=TENANT,
                    pipeline=name,
                    at=datetime.now(UTC),
                    routes=[],
                    carriers=[],
                    left_off=0,
                    crossed={"PlacementReported": 2},
                    checkpoint=self.checkpoint(),
                )
                return 200, {"report": seal(body, self.signing)}
            case ["audit", "replay"]:
                entry = msgspec.to_builtins(self.entries[-1])
                kinds: dict[str, Any] = {
                    kind: [] for kind in ("connections", "pipelines", "data_planes", "nodes", "api_keys")
                }
                return 200, {"at": query["at"], "entry": entry, **kinds}
            case ["events"] | [_, _, "events"]:
                found = [e for e in self.entries if e.event_id > after and (len(parts) < 3 or e.name == parts[1])]
                return 200, {
                    "items": [
                        {"id": e.event_id, "at": e.at, "kind": e.kind, "name": e.name, "type": e.type, "actor": e.actor}
                        for e in found[:limit]
                    ]
                }
            case [noun]:
                return 200, {
                    "items": [r for (kind, _), r in sorted(self.resources.items()) if kind == noun],
                    "next_cursor": None,
                }
            case [noun, name] if (noun, name) in self.resources:
                return 200, self.resources[noun, name]
        return problem(404, "not_found", "There is no such resource.")

    def _write(self, method: str, parts: list[str], query: dict[str, str], body: dict[str, Any]) -> Answer:
        dry = query.get("dry_run") == "true"
        match method, parts:
            case "PUT", ["access-grants", name]:
                return 201, self.put("access-grants", name, expires_at="2030-01-01T00:00:00Z", uses=0)
            case "PUT", [noun, name]:
                return self._put(noun, name, body, dry=dry)
            case "DELETE", [noun, name] if (noun, name) in self.resources:
                found = self.resources[noun, name]
                if not dry:
                    del self.resources[noun, name]
                return 202 if query.get("cleanup") else 200, {**found, "warnings": ["The slot is kept."]}
            case "POST", [noun, name, "pause" | "resume" | "restart" | "resync" | "reconcile"] if (
                noun,
                name,
            ) in self.resources:
                fields = {k: v for k, v in self.resources[noun, name].items() if k not in READ_ONLY}
                return 200, self.put(noun, name, **fields)
            case "POST", ["data-planes", _, "join-tokens"]:
                return 201, {"token": "pmj_secret_token", "expires_at": "2030-01-01T00:00:00Z"}
            case "POST", ["connections", name, "test"]:
                good = {"ok": True, "code": None, "message": None, "hint": None, "server_version": 180003}
                bad = {"ok": False, "code": "source_unreachable", "message": "It does not answer.", "hint": "Look."}
                seen = good if ("connections", name) in self.resources else bad
                return 200, {"connection": name, "node": "node-1", "elapsed_seconds": 0.02, **seen}
            case "POST", ["connections", name, "doctor"]:
                return 200, diagnosis(name, sound=("connections", name) in self.resources)
            case "POST", ["api-keys"]:
                return 201, {"name": "0123456789abcdef", "label": body["name"], "role": body["role"], "api_key": "pm_s"}
            case "POST", ["members"]:
                status = {"display_name": body["display_name"], "email": body["email"]}
                return 201, self.put("members", "00ff00ff00ff00ff", role=body["role"], status=status)
            case "POST", ["members", name, "erase"] if ("members", name) in self.resources:
                return 200, self.put("members", name, role="viewer", status={"phase": "erased"})
            case "POST", ["operators"]:
                return 201, {"name": body["name"], "id": "0123456789abcdef", "api_key": "pm_operator"}
            case "POST", ["tenants"]:
                return 201, {"name": body["name"], "tenant": TENANT, "api_key": "pm_first"}
        return problem(404, "not_found", "There is no such resource.")

    def _put(self, noun: str, name: str, body: dict[str, Any], *, dry: bool) -> Answer:
        if body.get("type") == "unknown":
            return problem(422, "unknown_type", "/type: not a type", pointer="/type")
        fields = {key: value for key, value in body.items() if key not in READ_ONLY}
        before = self.resources.get((noun, name))
        if before is not None and {k: v for k, v in before.items() if k not in READ_ONLY} == fields:
            return 200, before
        status = 201 if before is None else 200
        if dry:
            generation = (before or {"generation": 0})["generation"] + 1
            return status, {"kind": KINDS[noun], "name": name, **fields, "generation": generation}
        return status, self.put(noun, name, **fields)

    def checkpoint(self) -> str:
        last = self.entries[-1] if self.entries else None
        body = Checkpoint(
            tenant=TENANT,
            sequence=last.sequence if last else 0,
            hash=last.hash if last else GENESIS,
            at=datetime.now(UTC),
        )
        return envelope.sign(body, self.signing, contract=2, purpose=Purpose.CHECKPOINT).decode()


def diagnosis(name: str, *, sound: bool) -> dict[str, Any]:
    """What the API answers to the doctor: a warning, and a problem unless the connection is `sound`."""

    def finding(check: str, outcome: str, message: str, hint: str | None, *sql: str) -> dict[str, Any]:
        return {"check": check, "outcome": outcome, "message": message, "hint": hint, "sql": list(sql)}

    bad = finding("table_readable", "problem", "The user may not read public.t.", None, 'GRANT SELECT ON "t" TO "u"')
    unlimited = finding("slot_size_limit", "warning", "It is unlimited.", "Limit it.", "SELECT pg_reload_conf()")
    return {
        "connection": name,
        "node": "node-1",
        "ok": sound,
        "complete": sound,
        "elapsed_seconds": 0.08,
        "findings": [*([] if sound else [bad]), unlimited, finding("connects", "ok", "Connected.", None)],
        "left_off": 0,
    }


def problem(status: int, code: str, detail: str, *, pointer: str | None = None) -> Answer:
    errors = [{"pointer": pointer, "message": "is wrong"}] if pointer else []
    return status, {
        "type": "about:blank",
        "title": detail,
        "status": status,
        "detail": detail,
        "code": code,
        "hint": f"What to do about {code}.",
        "errors": errors,
        "request_id": "r1",
    }
