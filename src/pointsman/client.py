"""The HTTP client of a control plane: what the command line, `pointsman up` and the demo speak through.

Every write carries an Idempotency-Key, made once and kept over its retries, so a write whose answer got lost is sent
again without being done twice. Retries are few and bounded in time; what is still unknown then is said to be unknown.
Every read that follows a write asks for at least that write's revision, so a client reads its own writes. Refusals come
as `ApiProblem` with the control plane's code and hint.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx

from pointsman.problems import CODES, ApiProblem, Exit, Problem, exit_for

Resource = dict[str, Any]
"""A resource as the API writes it: what people wrote, and read-only fields (generation, revision, status, …)."""

ATTEMPTS_MAX = 4
RETRY_SECONDS_FIRST = 0.25
RETRY_SECONDS_MAX = 3.0
TIMEOUT_SECONDS = 10.0
ANSWER_BYTES_MAX = 32 << 20
PAGE_ITEMS = 200
PAGES_MAX = 10_000
EVENTS_MAX = 100_000

_RETRIED = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class Written:
    """What a write answered: the resource as it is now (or would be), and whether it was made."""

    resource: Resource
    status: int
    etag: str | None

    @property
    def created(self) -> bool:
        """Whether the resource did not exist before."""
        return self.status == 201


class Client:
    """One control plane, seen with one key. Use it as a context manager; it keeps its connections open in between."""

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        attempts_max: int = ATTEMPTS_MAX,
        at_least: int | None = None,
        grant: str | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare; nothing is sent yet. `at_least` is the newest revision that was seen before.

        `grant` is `TENANT/NAME` of the access grant under which the vendor's operator reads.
        """
        headers = {"Accept": "application/json", "User-Agent": "pointsman-cli"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        if grant is not None:
            headers["Pointsman-Grant"] = grant
        self.url = url.rstrip("/")
        self.revision = at_least
        self._attempts_max = attempts_max
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx.Timeout(timeout_seconds, connect=min(5.0, timeout_seconds)),
            transport=transport,
            follow_redirects=False,
            trust_env=False,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # ---- Reads ----

    def get(self, noun: str, name: str) -> Resource:
        """Return one resource, such as `get("pipelines", "orders")`.

        Raises:
            ApiProblem: `not_found` among others.
        """
        return self._read(f"/v1/{noun}/{quote(name, safe='')}", {})

    def list_all(self, noun: str) -> Iterator[Resource]:
        """Yield all resources of a kind, page by page, in the API's order."""
        cursor: str | None = None
        for _ in range(PAGES_MAX):
            page = self._read(f"/v1/{noun}", {"limit": PAGE_ITEMS, "cursor": cursor})
            yield from page.get("items", [])
            cursor = page.get("next_cursor")
            if not cursor:
                return

    def events(
        self, *, noun: str | None = None, kind: str | None = None, name: str | None = None, after: int = 0, limit: int
    ) -> list[Resource]:
        """Return up to `limit` events after notification id `after`: of one resource, of one kind, or of the tenant."""
        if noun is not None and name is not None:
            path, query = f"/v1/{noun}/{quote(name, safe='')}/events", {}
        else:
            path, query = "/v1/events", {"kind": kind, "name": name}
        return self._paged(path, query, after=after, limit=limit, key="id")

    def latest_events(self, noun: str, name: str, *, limit: int) -> list[Resource]:
        """Return the newest `limit` events of one resource, oldest first. Its whole history is read for it."""
        return self.events(noun=noun, name=name, limit=EVENTS_MAX)[-limit:]

    def audit_checkpoint(self) -> str:
        """Return the signed head of the audit log."""
        return str(self._read("/v1/audit/checkpoint", {})["checkpoint"])

    def residency(self, pipeline: str) -> str:
        """Return the signed report of where a pipeline's rows were."""
        return str(self._read(f"/v1/audit/residency/{quote(pipeline, safe='')}", {})["report"])

    def audit_entries(self, *, after: int = 0) -> Iterator[Resource]:
        """Yield the audit log's entries after sequence number `after`, in order."""
        for _ in range(PAGES_MAX):
            page = self._read("/v1/audit/entries", {"after": after, "limit": PAGE_ITEMS})
            items = page.get("items", [])
            if not items:
                return
            yield from items
            after = items[-1]["sequence"]

    def audit_replay(self, at: str) -> Resource:
        """Return everything that was configured at the moment `at` (RFC 3339 with its zone)."""
        return self._read("/v1/audit/replay", {"at": at})

    def read(self, path: str) -> Resource:
        """Return what GET answers at `path` now, such as `/v1/audit/key`."""
        return self._decode(self._send("GET", path))

    def is_ready(self) -> bool:
        """Say whether the control plane says of itself that it is ready. Never raises for one that does not answer."""
        try:
            return self._http.get("/readyz", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    def is_alive(self) -> bool:
        """Say whether the control plane answers at all."""
        try:
            return self._http.get("/livez", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    # ---- Writes ----

    def put(
        self,
        noun: str,
        name: str,
        document: Mapping[str, Any],
        *,
        dry_run: bool = False,
        if_match: str | None = None,
        idempotency_key: str | None = None,
    ) -> Written:
        """Make a resource what `document` says, or with `dry_run` only check it and answer what it would be.

        Raises:
            ApiProblem: refused; nothing was changed.
            Problem: outcome_unknown, api_unreachable.
        """
        headers = {"If-Match": if_match} if if_match else {}
        return self._write(
            "PUT", f"/v1/{noun}/{quote(name, safe='')}", document, headers, dry_run=dry_run, key=idempotency_key
        )

    def post(
        self,
        path: str,
        document: Mapping[str, Any] | None = None,
        *,
        dry_run: bool = False,
        idempotency_key: str | None = None,
    ) -> Written:
        """Ask for something that is no whole document, such as `/v1/pipelines/orders/pause` or a join token."""
        return self._write("POST", path, document, {}, dry_run=dry_run, key=idempotency_key)

    def delete(self, noun: str, name: str, *, cleanup: bool = False, dry_run: bool = False) -> Written:
        """Delete a resource. `cleanup` asks the node to drop what a pipeline made at its source first."""
        path = f"/v1/{noun}/{quote(name, safe='')}" + ("?cleanup=true" if cleanup else "")
        return self._write("DELETE", path, None, {}, dry_run=dry_run, key=None)

    # ---- How ----

    def _paged(self, path: str, query: Mapping[str, Any], *, after: int, limit: int, key: str) -> list[Resource]:
        found: list[Resource] = []
        while len(found) < limit:
            wanted = min(PAGE_ITEMS, limit - len(found))
            items = self._read(path, {**query, "after": after, "limit": wanted}).get("items", [])
            found += items
            if len(items) < wanted:
                break
            after = items[-1][key]
        return found

    def _read(self, path: str, query: Mapping[str, Any]) -> Resource:
        given = {name: value for name, value in query.items() if value is not None}
        wants = {} if self.revision is None else {"at_least": self.revision}
        try:
            return self._decode(self._send("GET", path, params={**given, **wants}))
        except ApiProblem as problem:
            if problem.code != "projection_behind" or self.revision is None:
                raise
            # Behind for longer than the API waits, or a revision of another life of this address: read what there is.
            self.revision = None
            return self._decode(self._send("GET", path, params=given))

    def _write(
        self,
        method: str,
        path: str,
        document: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        *,
        dry_run: bool,
        key: str | None,
    ) -> Written:
        body = None if document is None else json.dumps(document).encode()
        sent = {"Idempotency-Key": key or uuid4().hex, **headers}
        if body is not None:
            sent["Content-Type"] = "application/json"
        if dry_run:
            path += ("&" if "?" in path else "?") + "dry_run=true"
        response = self._send(method, path, content=body, headers=sent)
        resource = self._decode(response)
        revision = resource.get("revision")
        if isinstance(revision, int) and not dry_run:
            self.revision = max(revision, self.revision or 0)
        return Written(resource, response.status_code, response.headers.get("ETag"))

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send a request, again after a refusal that may pass or a lost answer, with the same headers and body."""
        may_have_arrived = False
        pause = RETRY_SECONDS_FIRST
        for attempt in range(1, self._attempts_max + 1):
            last = attempt == self._attempts_max
            wait: float | None = None
            try:
                response = self._http.request(method, path, **request)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
                pass
            except httpx.TransportError:
                may_have_arrived = True
            except httpx.InvalidURL:
                raise Problem("api_unreachable", "The address given with --api is not a URL.") from None
            else:
                if response.status_code not in _RETRIED or last or self._is_final(response):
                    return response
                wait = _retry_after(response)
            if not last:
                self._sleep(wait if wait is not None else pause * random.uniform(0.75, 1.25))  # noqa: S311
                pause = min(2 * pause, RETRY_SECONDS_MAX)
        if may_have_arrived and method != "GET":
            raise Problem(
                "outcome_unknown",
                f"No answer from {self.url}; the change may have been made or not.",
                hint=CODES["outcome_unknown"][1],
                exit_code=Exit.UNKNOWN,
            )
        raise Problem(
            "api_unreachable",
            f"The control plane at {self.url} does not answer.",
            hint="Pipelines go on without it. " + CODES["api_unreachable"][1],
            next_command="pointsman ps",
        )

    @staticmethod
    def _is_final(response: httpx.Response) -> bool:
        # The API has already waited, for its read model or for a node: asking again would only wait once more.
        answer = response.content[:4096]
        return response.status_code in (503, 504) and (b"projection_behind" in answer or b"node_silent" in answer)

    def _decode(self, response: httpx.Response) -> Resource:
        if len(response.content) > ANSWER_BYTES_MAX:
            raise Problem("bad_answer", f"The answer of {self.url} is larger than {ANSWER_BYTES_MAX >> 20} MiB.")
        if response.is_success and not response.content:
            return {}
        try:
            value = response.json()
        except ValueError:
            value = None
        if response.is_success and isinstance(value, dict):
            return value
        if response.is_success or not isinstance(value, dict):
            raise Problem(
                "bad_answer",
                f"{self.url} answered {response.status_code} in a form that is not the API's.",
                hint=CODES["bad_answer"][1],
                exit_code=exit_for(response.status_code),
            )
        raise _problem(response.status_code, value)


def _problem(status: int, document: Mapping[str, Any]) -> ApiProblem:
    errors = document.get("errors") or []
    details = [f"{error.get('pointer') or '/'}: {error.get('message')}" for error in errors if isinstance(error, dict)]
    message = str(document.get("detail") or document.get("title") or f"The control plane answered {status}.")
    return ApiProblem(
        status,
        str(document.get("code") or f"http_{status}"),
        message,
        hint=str(document["hint"]) if document.get("hint") else None,
        details=details,
        request_id=document.get("request_id"),
    )


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return min(float(response.headers["Retry-After"]), RETRY_SECONDS_MAX)
    except (KeyError, ValueError):
        return None
