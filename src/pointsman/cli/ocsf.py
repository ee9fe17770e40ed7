"""An audit entry as an event of the Open Cybersecurity Schema Framework, for a SIEM: class Entity Management (3004).

In flow entries of the audit log; out flow the objects that `audit export --format ocsf` writes. What identifies the entry
in its chain goes along under `unmapped`, so that an event in a SIEM leads back to the proof. Pure.
"""

from datetime import datetime
from importlib.metadata import version
from typing import Any

import msgspec

from contracts.audit import AuditEntry

SCHEMA_VERSION = "1.3.0"
CATEGORY, CLASS = 3, 3004
_CREATE, _UPDATE, _DELETE, _OTHER = 1, 3, 4, 99
_ACTIVITIES = {_CREATE: "Create", _UPDATE: "Update", _DELETE: "Delete", _OTHER: "Other"}
_SEVERITY_INFORMATIONAL, _STATUS_SUCCESS = 1, 1

_ENDINGS = {
    _CREATE: ("Created", "Issued", "Enrolled"),
    _DELETE: ("Deleted", "Revoked"),
    _UPDATE: ("Configured", "Paused", "Resumed", "Requested", "Redeemed", "Reported", "Changed"),
}


def as_ocsf(entry: AuditEntry, tenant: str) -> dict[str, Any]:
    """Return one entry as an OCSF event. `time` is in milliseconds since 1970."""
    activity = _activity(entry.type)
    return {
        "metadata": {
            "version": SCHEMA_VERSION,
            "product": {"name": "Pointsman", "vendor_name": "Pointsman", "version": version("pointsman")},
            "uid": f"{tenant}/{entry.sequence}",
            "tenant_uid": tenant,
            "event_code": entry.type,
        },
        "time": int(msgspec.convert(entry.at, datetime).timestamp() * 1000),
        "category_uid": CATEGORY,
        "category_name": "Identity & Access Management",
        "class_uid": CLASS,
        "class_name": "Entity Management",
        "activity_id": activity,
        "activity_name": _ACTIVITIES[activity],
        "type_uid": CLASS * 100 + activity,
        "type_name": f"Entity Management: {_ACTIVITIES[activity]}",
        "severity_id": _SEVERITY_INFORMATIONAL,
        "status_id": _STATUS_SUCCESS,
        "actor": {"user": {"uid": entry.actor}},
        "entity": {"name": entry.name, "type": entry.kind, "data": msgspec.json.decode(entry.payload)},
        "unmapped": {
            "sequence": entry.sequence,
            "event_id": entry.event_id,
            "previous": entry.previous,
            "hash": entry.hash,
        },
    }


def _activity(type_: str) -> int:
    return next((activity for activity, endings in _ENDINGS.items() if type_.endswith(endings)), _OTHER)
