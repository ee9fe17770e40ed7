"""Who may do what at the hub: the accounts of the system, of the control plane and of every tenant, and their users.

CONTROL exports one stream (`tenant.*.desired.>`) and one service (`tenant.*.up.>`). The tenant's token in both is bound
to the importing account's key by the hub itself (`account_token_position`), so a tenant can import nothing but its own,
and the control plane reads from a subject that the server wrote who is speaking.

Accounts' keys are derived from one secret, so nothing here is state. Called by the service (claims), by the enrolment
command (a leaf's credentials, the first trust list) and by the rendering of the hub's configuration.
"""

import time
from collections.abc import Mapping

from msgspec import UNSET

from contracts import subjects, v2
from contracts.envelope import Purpose, sign
from contracts.keys import KeyPair, Role
from controlplane.channel import jwt
from controlplane.channel.keys import ChannelKeys

LEAVES_PER_TENANT_MAX = 1_000
TRUST_NAME = "trust"
_TENANT_TOKEN = 2


class Accounts:
    """All accounts, made from the channel's keys.

    With `certificates` the hub asks the control plane about every leaf that connects to a tenant's account (see
    `leaf_admission`), because by itself it does not tie a leaf's certificate to its token.
    """

    def __init__(self, keys: ChannelKeys, *, certificates: bool = False) -> None:
        self._keys = keys
        self.certificates = certificates
        self._system = keys.derive("system")
        self._control = keys.derive("control")
        # A tenant's account must name a user about whom the hub does not ask; nobody ever gets this one's token.
        self._nobody = keys.derive("nobody", Role.USER)

    @property
    def system_key(self) -> str:
        """The public key of the hub's system account."""
        return self._system.public

    @property
    def control_key(self) -> str:
        """The public key of the control plane's account."""
        return self._control.public

    @property
    def root_key(self) -> str:
        """The public key that nodes pin when they join."""
        return self._keys.root.public

    def account_key(self, tenant: str) -> str:
        """Return the public key of the tenant's account: the token that stands for the tenant in subjects."""
        return self._tenant(tenant).public

    # ---- Claims -----------------------------------------------------------------------------------------------------

    def operator_jwt(self) -> str:
        """Return the operator's token, for the hub's configuration."""
        return jwt.operator(self._keys.operator, system_account=self._system.public, issued_at=_now())

    def system_jwt(self) -> str:
        """Return the system account's token."""
        limits = jwt.Limits(connections=64, leaves=0, payload_bytes=jwt.UNLIMITED)
        return jwt.account(self._system.public, self._keys.operator, "system", limits=limits, issued_at=_now())

    def control_jwt(self) -> str:
        """Return the token of the control plane's account, with what it exports to tenants."""
        exports = [
            {
                "name": "desired",
                "subject": "tenant.*.desired.>",
                "type": "stream",
                "account_token_position": _TENANT_TOKEN,
            },
            {
                "name": "up",
                "subject": subjects.EVERY_TENANT_UP,
                "type": "service",
                "response_type": "Singleton",
                "account_token_position": _TENANT_TOKEN,
            },
            {
                "name": "admission",
                "subject": subjects.EVERY_TENANT_ADMISSION,
                "type": "service",
                "response_type": "Singleton",
                "account_token_position": _TENANT_TOKEN,
            },
        ]
        limits = jwt.Limits(connections=64, leaves=0, subscriptions=1_000)
        return jwt.account(
            self._control.public, self._keys.operator, "control", limits=limits, exports=exports, issued_at=_now()
        )

    def tenant_jwt(self, tenant: str, revoked: Mapping[str, int]) -> str:
        """Return the token of a tenant's account. It takes leaves only. `revoked`: a leaf's key → seconds since 1970."""
        key = self._tenant(tenant).public
        imports = [
            {
                "name": "desired",
                "subject": subjects.for_tenant(key, "desired.>"),
                "account": self._control.public,
                "local_subject": "desired.>",
                "type": "stream",
            },
            {
                "name": "up",
                "subject": subjects.for_tenant(key, "up.>"),
                "account": self._control.public,
                "local_subject": "up.>",
                "type": "service",
            },
        ]
        if self.certificates:
            imports.append(
                {
                    "name": "admission",
                    "subject": subjects.for_tenant(key, subjects.ADMISSION),
                    "account": self._control.public,
                    "local_subject": jwt.ADMISSION_SUBJECT,
                    "type": "service",
                }
            )
        return jwt.account(
            key,
            self._keys.operator,
            tenant,
            # Leaves count as connections too, and the hub cuts those above the limit whenever it takes new claims. That
            # nothing but a leaf connects is said by each user's token.
            limits=jwt.Limits(connections=LEAVES_PER_TENANT_MAX, leaves=LEAVES_PER_TENANT_MAX),
            imports=imports,
            revoked=revoked,
            issued_at=_now(),
            signing_keys=[each for each in self.issuers(tenant) if each != key],
            admitting_user=self._nobody.public if self.certificates else None,
        )

    # ---- Users ------------------------------------------------------------------------------------------------------

    def leaf_credentials(self, tenant: str, data_plane: str, leaf_key: str) -> str:
        """Return the token with which the leaf of a data plane links to the hub: that plane's subjects, nothing else.

        Raises:
            ValueError: `data_plane` is not an identifier.
        """
        issuer, account = self._issuer(tenant, self._keys.accounts.number), self.account_key(tenant)
        of_account = account if issuer.public != account else None
        name = f"leaf-{data_plane}"
        return jwt.user(leaf_key, issuer, name, _of_leaf(data_plane), issued_at=_now(), of_account=of_account)

    def issuers(self, tenant: str) -> tuple[str, ...]:
        """Return the public keys whose tokens for the tenant's leaves are good, the one that signs now first."""
        numbers = range(self._keys.accounts.number, self._keys.accounts.oldest - 1, -1)
        return tuple(self._issuer(tenant, number).public for number in numbers)

    def let_in(self, tenant: str, data_plane: str, leaf_key: str, user_key: str, server: str, *, until: int) -> str:
        """Return the answer that lets a leaf in until `until`, in seconds since 1970. The hub then calls it `leaf_key`."""
        account = self._tenant(tenant)
        token = jwt.user(user_key, account, leaf_key, _of_leaf(data_plane), issued_at=_now(), expires_at=until)
        return jwt.admitted(user_key, server, account, token, issued_at=_now())

    def keep_out(self, tenant: str, user_key: str, server: str, reason: str) -> str:
        """Return the answer that keeps a leaf out."""
        return jwt.refused(user_key, server, self._tenant(tenant), reason, issued_at=_now())

    def control_user(self) -> tuple[str, KeyPair]:
        """Return the token and key of a new user for the control plane's own traffic."""
        permissions = jwt.Permissions(
            publish=("tenant.*.desired.>",),
            subscribe=(subjects.EVERY_TENANT_UP, subjects.EVERY_TENANT_ADMISSION),
            replies=True,
        )
        return self._new_user(self._control, "control-plane", permissions)

    def system_user(self) -> tuple[str, KeyPair]:
        """Return the token and key of a new user that may push claims to the hub, and see and cut leaves' links."""
        permissions = jwt.Permissions(
            publish=("$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.SERVER.PING.LEAFZ", "$SYS.REQ.SERVER.*.KICK"),
            subscribe=("_INBOX.>", "$SYS.ACCOUNT.*.CONNECT"),
        )
        return self._new_user(self._system, "claims", permissions)

    def _new_user(self, account: KeyPair, name: str, permissions: jwt.Permissions) -> tuple[str, KeyPair]:
        key = KeyPair.generate(Role.USER)
        return jwt.user(key.public, account, name, permissions, issued_at=_now()), key

    # ---- Trust ------------------------------------------------------------------------------------------------------

    def trust(self, tenant: str, data_plane: str) -> v2.TrustDocument:
        """Return the list of online keys as one data plane gets it. Its epoch never changes: only the root replaces it."""
        return v2.TrustDocument(
            tenant=tenant,
            data_plane=data_plane,
            name=TRUST_NAME,
            epoch=1,
            generation=self._keys.trust.number,
            keys=self._keys.trust.keys,
            authorities=[each.pem for each in self._keys.authorities] or UNSET,
            issuer=UNSET if self._keys.accounts.number == 1 else self.issuers(tenant)[0],
        )

    def trust_document(self, tenant: str, data_plane: str, contract: int = v2.CONTRACT) -> str:
        """Return that list, signed by the root key."""
        document = self.trust(tenant, data_plane)
        return sign(document, self._keys.root, contract=contract, purpose=Purpose.DOCUMENT).decode()

    def _issuer(self, tenant: str, number: int) -> KeyPair:
        """Return the key that signs leaves' tokens: the account's own, until it was rotated for the first time."""
        return self._tenant(tenant) if number == 1 else self._keys.derive(f"tenant/{tenant}/issuer/{number}")

    def _tenant(self, tenant: str) -> KeyPair:
        return self._keys.derive(f"tenant/{tenant}/1")


def _of_leaf(data_plane: str) -> jwt.Permissions:
    return jwt.Permissions(
        publish=subjects.up_all(data_plane),
        subscribe=(
            subjects.desired_all(1, data_plane),
            subjects.desired_all(2, data_plane),
            f"_INBOX.{data_plane}.>",
        ),
        connection_types=("LEAFNODE",),
    )


def _now() -> int:
    return int(time.time())
