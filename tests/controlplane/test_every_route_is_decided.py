"""Every route of the OpenAPI document, everybody who may ask, and whose tenant it is: one table says what is expected."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.controlplane.conftest import OPERATOR_KEY, Served, Tenant, bearer, connection, pipeline

READING = "owner admin operator viewer auditor read_only grant"
STEERING = "owner admin operator"
CHANGING = "owner admin"
PEOPLE = "owner admin auditor read_only"
VENDOR = "vendor first_operator"
FIRST = "first_operator"
OPEN = "everybody"

WHO_GETS_IN = {
    "ListAccessGrants": PEOPLE,
    "GetAccessGrant": PEOPLE,
    "GrantAccess": CHANGING,
    "RevokeAccess": CHANGING,
    "ListAccessGrantEvents": PEOPLE,
    "ListApiKeys": PEOPLE,
    "IssueApiKey": CHANGING,
    "RevokeApiKey": CHANGING,
    "ListAuditEntries": PEOPLE,
    "GetAuditCheckpoint": PEOPLE,
    "ReplayAudit": PEOPLE,
    "GetResidency": PEOPLE,
    "GetAuditKey": PEOPLE,
    "TestConnection": STEERING,
    "ExamineConnection": STEERING,
    "ListConnections": READING,
    "GetConnection": READING,
    "ApplyConnection": CHANGING,
    "DeleteConnection": CHANGING,
    "ListConnectionEvents": READING,
    "ListDataPlanes": READING,
    "GetDataPlane": READING,
    "ApplyDataPlane": CHANGING,
    "DeleteDataPlane": CHANGING,
    "IssueJoinToken": CHANGING,
    "ListDataPlaneEvents": READING,
    "EnrolNode": OPEN,
    "RenewLeafCertificate": OPEN,
    "ListEvents": READING,
    "GetFleet": VENDOR,
    "Live": OPEN,
    "Ready": OPEN,
    "Metrics": OPEN,
    "OpenApi": OPEN,
    "ListMembers": PEOPLE,
    "GetMember": PEOPLE,
    "AddMember": CHANGING,
    "ChangeMember": CHANGING,
    "RemoveMember": CHANGING,
    "EraseMember": CHANGING,
    "ListNodes": READING,
    "GetNode": READING,
    "RevokeNode": CHANGING,
    "ListNodeEvents": READING,
    "ListPipelines": READING,
    "GetPipeline": READING,
    "ApplyPipeline": CHANGING,
    "DeletePipeline": CHANGING,
    "PausePipeline": STEERING,
    "ResumePipeline": STEERING,
    "RestartPipeline": STEERING,
    "ResyncPipeline": STEERING,
    "ReconcilePipeline": STEERING,
    "ListPipelineEvents": READING,
    "ListTenants": VENDOR,
    "CreateTenant": VENDOR,
    "ListOperators": FIRST,
    "IssueOperatorKey": FIRST,
    "RevokeOperatorKey": FIRST,
}
"""By operation: who gets past the question who may. Nobody else does; without a key nobody does but where it is open."""

ROLES = ("owner", "admin", "operator", "viewer", "auditor")
MARK = "only-theirs"
"""Stands in everything that the tenant has: nothing of it may come to anybody of another tenant."""

Route = tuple[str, str, str, bool]
"""Operation, method, path, and whether it can be rehearsed."""


class House:
    """A tenant with one of everything, and a client for everybody who may ask."""

    def __init__(self, served: Served) -> None:
        self.tenant = tenant = Tenant(served)
        tenant.put(f"/v1/data-planes/{MARK}", {}).raise_for_status()
        for name, database in ((MARK, "theirs"), (f"{MARK}-sink", "elsewhere")):
            tenant.put(f"/v1/connections/{name}", connection(database)).raise_for_status()
        flow = {"source": {"connection": MARK, "tables": ["public.a"]}, "sink": {"connection": f"{MARK}-sink"}}
        tenant.put(f"/v1/pipelines/{MARK}", pipeline(data_plane=MARK, **flow)).raise_for_status()
        token = tenant.api.post(f"/v1/data-planes/{MARK}/join-tokens").json()["token"]
        enrol = {"token": token, "node": MARK, "node_key": "U" + "B" * 55, "contract": 2}
        self.nobody = httpx.Client(base_url=served.url, timeout=30, verify=False)
        self.nobody.post("/v1/enrol", json=enrol).raise_for_status()
        tenant.put(f"/v1/access-grants/{MARK}", {}).raise_for_status()
        person = {"display_name": MARK, "email": f"{MARK}@example.com", "role": "viewer"}
        added = tenant.api.post("/v1/members", json=person)
        self.member = added.json()["name"]
        self.key_id = tenant.key.split("_")[1]
        self.callers: dict[str, httpx.Client] = {role: tenant.as_role(role) for role in ROLES}
        self.callers["read_only"] = tenant.as_role("owner", read_only=True)
        self.callers["first_operator"] = first = tenant.client(OPERATOR_KEY)
        made = first.post("/v1/operators", json={"name": "grace"})
        tenant.seen(made)
        self.callers["vendor"] = tenant.client(made.json()["api_key"])
        for name, grant in (("grant", MARK), ("closed_grant", "no-such-grant")):
            self.callers[name] = tenant.client(OPERATOR_KEY)
            self.callers[name].headers["Pointsman-Grant"] = f"{tenant.id}/{grant}"
        self.stranger = Tenant(served)

    def address(self, operation: str, path: str) -> str:
        """The address of something of the tenant's."""
        name = self.member if "Member" in operation else MARK
        return path.replace("{name}", name).replace("{key_id}", self.key_id)

    def close(self) -> None:
        self.nobody.close()
        self.tenant.close()
        self.stranger.close()


@pytest.fixture(scope="module")
def routes(served: Served) -> list[Route]:
    """Every operation of the document that the process serves."""
    document = httpx.get(f"{served.url}/schema/openapi.json").json()
    return [
        (
            operation["operationId"],
            method.upper(),
            path,
            any(each["name"] == "dry_run" for each in operation["parameters"]),
        )
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


@pytest.fixture(scope="module")
def house(served: Served) -> Iterator[House]:
    made = House(served)
    yield made
    made.close()


def test_the_table_names_every_route_and_no_other(routes: list[Route]) -> None:
    """A new route needs a line, a route that goes takes its line with it."""
    assert {operation for operation, *_ in routes} == WHO_GETS_IN.keys()


def test_everybody_gets_where_the_table_says_and_nowhere_else(house: House, routes: list[Route]) -> None:
    """Each route is asked with a parameter that it does not know, so that whoever gets in changes nothing."""
    wrong = []
    for operation, method, path, _ in routes:
        expected = WHO_GETS_IN[operation]
        if expected == OPEN:
            continue
        for caller, client in house.callers.items():
            answer = client.request(method, house.address(operation, path), params={"not_a_parameter": "1"})
            gets_in = answer.json()["code"] != "forbidden"
            if gets_in is not (caller in expected.split()) or answer.status_code in (401, 429, 500):
                wrong.append((operation, caller, answer.status_code, answer.json()["code"]))
    assert wrong == []


def test_without_a_key_only_what_is_open_answers(house: House, routes: list[Route]) -> None:
    """Whatever is asked for, and whether or not it exists, the refusal is the same."""
    told = set()
    for operation, method, path, _ in routes:
        for headers in ({}, bearer("pm_0123456789abcdef_" + "x" * 43)):
            answer = house.nobody.request(method, house.address(operation, path), headers=headers)
            if WHO_GETS_IN[operation] == OPEN:
                assert answer.status_code != 401, operation
                continue
            told.add((answer.status_code, answer.json()["code"], bool(headers), answer.json()["detail"]))
    assert len(told) == 2, "one refusal for no key and one for a wrong one, whatever was asked for"
    assert {status for status, *_ in told} == {401}


def test_a_stranger_gets_nothing_of_a_tenant_from_any_route(served: Served, house: House, routes: list[Route]) -> None:
    """Another tenant's owner asks every route for what is not theirs: no answer holds any of it, and nothing changes."""

    def history() -> Any:
        newest = {"limit": 200, "at_least": served.control_plane.log.latest()}
        return house.tenant.api.get("/v1/events", params=newest).json()["items"]

    before = history()
    bodies: dict[str, Any] = {"ApplyPipeline": pipeline(), "ApplyConnection": connection("mine")}
    for operation, method, path, rehearsed in routes:
        if WHO_GETS_IN[operation] in (OPEN, VENDOR, FIRST):
            continue
        address = house.address(operation, path)
        parameters = {"dry_run": "true"} if rehearsed else {"at": "2030-01-01T00:00:00Z"} if "replay" in path else {}
        answer = house.stranger.api.request(method, address, params=parameters, json=bodies.get(operation))
        assert answer.status_code < 500, (operation, answer.text)
        if method == "PUT":  # of a name of the stranger's own
            assert answer.json().get("generation", 1) == 1, operation
        elif "{" in path:
            assert answer.status_code == 404 or answer.json()["items"] == [], operation
        else:
            shown = [theirs for theirs in (MARK, house.member, house.key_id, house.tenant.id) if theirs in answer.text]
            assert shown == [], operation
    assert history() == before
