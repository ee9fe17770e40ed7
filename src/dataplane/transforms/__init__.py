"""What happens to a batch between source and sink: one file for each transform, pure and without I/O.

`make` turns a document's list into transforms, resolving the secrets that they need on this node.
"""

from collections.abc import Sequence
from pathlib import Path

from contracts import v2
from dataplane import secrets
from dataplane.transforms.drop import Drop
from dataplane.transforms.mask import Mask
from dataplane.transforms.port import Transform


def make(transforms: Sequence[v2.Transform], secrets_folder: Path) -> list[Transform]:
    """Return the transforms in the document's order.

    Raises:
        RetryLater: the secret of a hash is not on the node yet.
        Permanent: a secret is refused, or missing from the document.
    """
    return [_make(transform, secrets_folder) for transform in transforms]


def _make(transform: v2.Transform, secrets_folder: Path) -> Transform:
    if isinstance(transform, v2.DropTransform):
        return Drop(transform.table, transform.columns)
    hashed = transform.method is v2.MaskMethod.HASH and transform.secret is not None
    secret = secrets.resolve(transform.secret, secrets_folder) if hashed and transform.secret is not None else None
    return Mask(transform.table, transform.columns, transform.method, secret)
