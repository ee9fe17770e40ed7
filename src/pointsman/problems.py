"""What can go wrong in front of a person: a stable code, what happened, a hint, and the command to type next.

The client, the manifests and the local processes raise these; the command line alone prints them, in one form, and ends
with the exit code that belongs to them. Scripts may rely on codes and exit codes, never on the words.
"""

from collections.abc import Sequence
from enum import IntEnum


class Exit(IntEnum):
    """How a command ends."""

    OK = 0
    ERROR = 1
    DIFFERENT = 2
    """`diff` and `plan` found a difference."""
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    CONFLICT = 5
    UNKNOWN = 6
    """A time limit passed before the outcome was known: look before trying again."""
    USAGE = 64
    INTERRUPTED = 130


class Problem(Exception):
    """Something that a person can act on.

    `details` are single findings, each a place and what is wrong there. `next_command` is typed as it stands.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        next_command: str | None = None,
        exit_code: Exit = Exit.ERROR,
        details: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.next_command = next_command
        self.exit_code = exit_code
        self.details = tuple(details)


class ApiProblem(Problem):
    """The control plane refused a request: what its problem document says, and the HTTP status."""

    def __init__(self, status: int, code: str, message: str, *, request_id: str | None = None, **rest: object) -> None:
        super().__init__(code, message, exit_code=exit_for(status), **rest)  # type: ignore[arg-type]
        self.status = status
        self.request_id = request_id


def exit_for(status: int) -> Exit:
    """Return the exit code for an HTTP status."""
    if status == 404:
        return Exit.NOT_FOUND
    if status in (401, 403):
        return Exit.NOT_ALLOWED
    if status in (409, 412, 428):
        return Exit.CONFLICT
    if status in (408, 502, 503, 504):
        return Exit.UNKNOWN
    return Exit.ERROR


CODES: dict[str, tuple[str, str]] = {
    "api_unreachable": (
        "The control plane does not answer. Pipelines go on without it.",
        "Check the address, and `pointsman ps` on one machine.",
    ),
    "outcome_unknown": (
        "A write was sent and no answer came, after several tries with one Idempotency-Key.",
        "Look at the resource, then run the same command again: applying twice changes nothing.",
    ),
    "bad_answer": (
        "Something answered that is not a Pointsman control plane.",
        "Check the address given with --api.",
    ),
    "no_target": (
        "No control plane was named.",
        "Give --dir, --context, or --api with --key-file.",
    ),
    "key_file_unreadable": ("The file with the API key cannot be read.", "Check the path and its owner."),
    "unknown_context": ("No context of that name is known.", "Make one with `pointsman context set`."),
    "unknown_kind": ("There is no kind of that name.", "See the kinds in `pointsman get --help`."),
    "manifest_unreadable": ("A file or folder of manifests cannot be read.", "Check the path."),
    "manifest_invalid": (
        "A manifest is not the YAML that is accepted: no aliases, tags or duplicate keys; one mapping a document.",
        "Correct the line that is named.",
    ),
    "manifest_too_large": ("A document is larger than 1 MiB.", "Split it into several documents."),
    "secret_in_plain_text": (
        "A manifest holds a secret's value where a reference belongs.",
        "Write `file:NAME` or `env:NAME`; the node resolves it. If the file was shared, change the secret.",
    ),
    "signing_key_unreadable": (
        "The file with the signing key cannot be read, or holds none.",
        "Make one with `pointsman keys create --out FILE`, and give the same FILE to --sign.",
    ),
    "signing_clock_behind": (
        "What stands there was signed later than this machine's clock says it is now.",
        "Set the clock. If nobody signed with your key meanwhile, the control plane shows something that is not true.",
    ),
    "apply_incomplete": ("Some documents could not be applied; the others were.", "Correct them and apply again."),
    "wait_timeout": (
        "The condition did not come true in time. Whatever was asked for goes on.",
        "See why with `pointsman describe`, or wait longer with --timeout.",
    ),
    "residency_broken": (
        "A report of residency is not signed by a key that was given, or was changed.",
        "Give the key that you pinned, and after a rotation the one before it too. Otherwise make the report again.",
    ),
    "audit_broken": (
        "The audit log's chain, a signature or a checkpoint does not hold.",
        "Keep a copy of what was exported and ask who could write to the control plane's database.",
    ),
    "ledger_broken": (
        "The ledger of what left this node does not hold.",
        "Keep a copy of the node's folder and ask who could write to it.",
    ),
    "policy_invalid": (
        "The node's policy is missing, not valid, or can be changed by anyone: the node runs nothing.",
        "Correct policy.toml in the node's folder, or make one with `pointsman node policy init`.",
    ),
    "policy_exists": ("The node has a policy already.", "Edit it, or delete the file first."),
    "rotation_refused": (
        "The keys cannot be rotated or retired as they are.",
        "Rotate before you retire, and retire what is old before you rotate again.",
    ),
    "extra_missing": ("A part of Pointsman that this command needs is not installed.", "Install the named extra."),
    "already_running": ("Another `pointsman up` runs in this folder.", "Use it, or stop it first."),
    "not_running": ("No `pointsman up` runs in this folder.", "Start it with `pointsman up`."),
    "unknown_component": ("There is no component of that name.", "See the names with `pointsman ps`."),
    "system_error": ("The system refused something.", "Check paths, rights and free space."),
    "component_failed": ("A component did not become ready.", "Its log says why."),
    "demo_failed": ("The demo found something that does not hold.", "The lines above say what."),
    "pipeline_not_here": (
        "The node holds no pipeline of that name.",
        "Run the command on a node of the pipeline's data plane; `pointsman get pipelines` names it.",
    ),
    "dead_letter_unknown": (
        "There is no such dead letter.",
        "`pointsman node dlq list PIPELINE --folder FOLDER` shows those there are.",
    ),
    "confirmation_needed": ("The command cannot be undone.", "Add `--yes` once you have looked at what it would do."),
    "destination_not_read": (
        "The destination could not be asked for the rows that differed.",
        "Check the secret on this node and the way to the destination: `pointsman test connection NAME`.",
    ),
    "node_not_joined": ("No node has joined from this folder.", "Join with `pointsman node join`."),
    "usage": ("The command line has a mistake.", "See `--help` of the command."),
}
"""Codes that the command line itself gives: what each means and what to do. The API's and the nodes' come on top."""
