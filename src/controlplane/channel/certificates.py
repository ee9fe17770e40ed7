"""Certificates for leaves: given at enrolment and renewed later, to a leaf that has signed for its TLS key.

The newest authority signs; how long a certificate holds is a setting. Called by the API's enrolment and by the channel.
"""

import datetime as dt
from collections.abc import Sequence

from contracts import identity
from controlplane.channel.authority import Authority


class NotProven(ValueError):
    """The leaf has not signed for the TLS key, or it is none."""


class Certificates:
    """Makes certificates with the authorities of the keys folder. It keeps nothing of what it has made."""

    def __init__(self, authorities: Sequence[Authority], *, hours: float) -> None:
        self._authorities = tuple(authorities)
        self._lifetime = dt.timedelta(hours=hours)

    def for_leaf(self, tenant: str, data_plane: str, leaf_key: str, tls_key: str, proof: str) -> str | None:
        """Return a certificate in PEM for the leaf; None if the keys folder holds no authority.

        Raises:
            NotProven: `proof` is not the leaf's signature of `tls_key`, or that is no key.
        """
        if not identity.is_proven(leaf_key, tls_key, proof):
            raise NotProven("the leaf's key has not signed for the TLS key")
        if not self._authorities:
            return None
        uri = identity.leaf_uri(tenant, data_plane, leaf_key)
        try:
            return self._authorities[0].issue_leaf(uri, tls_key, now=dt.datetime.now(dt.UTC), lifetime=self._lifetime)
        except ValueError as error:
            raise NotProven("not a TLS public key") from error
