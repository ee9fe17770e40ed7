"""`keys …` and what `--sign` does: the customer's own key, which never leaves this machine, and signatures made with it.

A signature is made here, over what a file says, before anything is sent. A field that this version does not know stops it:
it would go unsigned, and a control plane gone bad could read it as it likes. What stands at the control plane already, with
a signature of the same key under the same text, keeps that signature, so applying twice changes nothing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec import Struct, structs
from rich.text import Text

from pointsman.cli import kinds, render
from pointsman.cli.create import write_secret
from pointsman.cli.manifests import Manifest, to_connection, to_pipeline
from pointsman.cli.output import output_option
from pointsman.cli.render import Format
from pointsman.problems import CODES, Exit, Problem

if TYPE_CHECKING:
    from contracts.countersigning import Statement
    from contracts.keys import KeyPair
    from contracts.v2 import CustomerSignature
    from pointsman.client import Client

KEY_BYTES_MAX = 4096
_NOT_SIGNED = frozenset(
    ("kind", "name", "type", "signature", "generation", "revision", "created_at", "updated_at", "status", "warnings")
)
"""At the top of a manifest: what addresses it, what only the control plane says, and the signature itself."""

sign_option = click.option(
    "--sign",
    "signing_key",
    metavar="KEY",
    help="File with your signing key, from `keys create`: pipelines and connections are signed with it, here.",
)


@click.group("keys")
def keys() -> None:
    """Make the key with which you sign what you apply. It stays on your side."""


@keys.command("create")
@click.option("--out", "out", required=True, metavar="FILE", help="A new file for the key, that only you may read.")
@output_option
def keys_create(out: str, output: Format) -> None:
    """Make a signing key. Its public half goes into `signed_by` under [documents] in the policy of your nodes."""
    from contracts.keys import KeyPair, Role

    key = KeyPair.generate(Role.USER)
    write_secret(Path(out), key.seed)
    render.print_one({"file": out, "public_key": key.public}, output, text=lambda _: Text(key.public))
    render.say(f'in policy.toml of each node:\n  [documents]\n  signed_by = ["{key.public}"]')


@keys.command("show")
@click.argument("file")
@output_option
def keys_show(file: str, output: Format) -> None:
    """Print the public half of a signing key."""
    key = read_key(file)
    render.print_one({"file": file, "public_key": key.public}, output, text=lambda _: Text(key.public))


def read_key(file: str) -> "KeyPair":
    """Read a signing key.

    Raises:
        Problem: signing_key_unreadable. It quotes nothing of the file.
    """
    from contracts.keys import KeyPair

    try:
        with Path(file).open("rb") as stream:
            return KeyPair(stream.read(KEY_BYTES_MAX))
    except OSError as error:
        why = error.strerror or "cannot be read"
    except ValueError:
        why = "is no signing key"
    raise Problem("signing_key_unreadable", f"{file}: {why}.", hint=CODES["signing_key_unreadable"][1])


def signed(client: "Client", manifests: Sequence[Manifest], key_file: str | None) -> list[Manifest]:
    """Return the manifests with the customer's signature in them; as they are, if no key is given.

    Raises:
        Problem: the key cannot be read, a manifest is not valid, or the clock is behind an earlier signature.
    """
    if key_file is None:
        return list(manifests)
    key = read_key(key_file)
    tenant = _tenant(client)
    return [_signed(client, each, key, tenant) if _is_signable(each) else each for each in manifests]


def _tenant(client: "Client") -> str:
    """Return the tenant as the control plane says it: under another one's id a signature is worth nothing to a node."""
    from contracts.audit import Checkpoint
    from contracts.envelope import EnvelopeError, open_signed

    try:
        return msgspec.json.decode(open_signed(client.audit_checkpoint()).body, type=Checkpoint).tenant
    except (EnvelopeError, msgspec.DecodeError):
        raise Problem("bad_answer", CODES["bad_answer"][0], hint=CODES["bad_answer"][1]) from None


def _is_signable(manifest: Manifest) -> bool:
    return manifest.kind in (kinds.PIPELINE, kinds.CONNECTION)


def _signed(client: "Client", manifest: Manifest, key: "KeyPair", tenant: str) -> Manifest:
    from pointsman.cli.apply import current

    statement = statement_of(manifest, tenant)
    before = _signature(current(client, manifest))
    signature = before if before is not None and before.key == key.public and statement.is_signed_by(before) else None
    if signature is None:
        signature = statement.sign(key, _number(manifest, before))
    return dataclasses.replace(manifest, body={**manifest.body, "signature": msgspec.to_builtins(signature)})


def statement_of(manifest: Manifest, tenant: str) -> "Statement":
    """Return what is signed of a manifest.

    Raises:
        Problem: manifest_invalid, also for a field that would go unsigned.
    """
    from contracts.countersigning import of_document

    document = to_pipeline(manifest) if manifest.kind is kinds.PIPELINE else to_connection(manifest)
    body = {name: each for name, each in manifest.body.items() if name not in _NOT_SIGNED}
    unknown = _unknown(body, document, "")
    if unknown is not None:
        words = f"{manifest.origin}: {unknown} is no field that can be signed."
        raise Problem("manifest_invalid", words, hint="Correct its spelling, or upgrade this command line.")
    return of_document(structs.replace(document, tenant=tenant))


def _unknown(written: Any, read: Any, pointer: str) -> str | None:
    """Return the first place in `written` that `read`, which was made of it, knows nothing of."""
    if isinstance(written, Mapping) and isinstance(read, Struct):
        fields = {field.encode_name: field.name for field in structs.fields(type(read))}
        for name, each in written.items():
            if name != read.__struct_config__.tag_field:
                if name not in fields:
                    return f"{pointer}/{name}"
                if (found := _unknown(each, getattr(read, fields[name]), f"{pointer}/{name}")) is not None:
                    return found
    if isinstance(written, list) and isinstance(read, list):
        for number, (each, inner) in enumerate(zip(written, read, strict=True)):
            if (found := _unknown(each, inner, f"{pointer}/{number}")) is not None:
                return found
    return None


def _signature(resource: Mapping[str, Any] | None) -> "CustomerSignature | None":
    from contracts.v2 import CustomerSignature

    try:
        return msgspec.convert((resource or {}).get("signature"), CustomerSignature | None)
    except msgspec.ValidationError:
        return None


def _number(manifest: Manifest, before: "CustomerSignature | None") -> int:
    from contracts.countersigning import number_now

    number = number_now()
    if before is not None and before.number >= number:
        raise Problem(
            "signing_clock_behind",
            f"{manifest.origin}: what stands there was signed under number {before.number}, and it is {number} now.",
            hint=CODES["signing_clock_behind"][1],
            exit_code=Exit.CONFLICT,
        )
    return number
