"""A member: a person who may act for a tenant. Events know an opaque id and a role; name and address lie elsewhere.

What a person is called is kept in the table `personal_data`, which can be erased while the log, which cannot, stays whole.
"""

from typing import ClassVar

from msgspec import structs

from controlplane.domain.aggregate import Aggregate, Context
from controlplane.domain.event import DomainEvent, registered


@registered
class MemberAdded(DomainEvent, frozen=True, kw_only=True):
    """Somebody belongs to the tenant, in a role. `name` is the member's id."""

    KIND: ClassVar[str] = "Member"

    role: str


@registered
class MemberRoleChanged(DomainEvent, frozen=True, kw_only=True):
    """The member is in another role from now on."""

    KIND: ClassVar[str] = "Member"

    role: str


@registered
class MemberRemoved(DomainEvent, frozen=True, kw_only=True):
    """The member does not belong to the tenant any more; the member's keys open nothing."""

    KIND: ClassVar[str] = "Member"


@registered
class MemberErased(DomainEvent, frozen=True, kw_only=True):
    """What was known of the person is gone. Only the id is left, which says nothing."""

    KIND: ClassVar[str] = "Member"


class Member(Aggregate, frozen=True, kw_only=True):
    """One member; its name is its id."""

    KIND: ClassVar[str] = "Member"

    active: bool = False
    role: str = ""
    erased: bool = False

    @property
    def exists(self) -> bool:
        """Say whether the person belongs to the tenant now."""
        return self.active

    def add(self, context: Context, role: str) -> list[DomainEvent]:
        """Decide to add the member."""
        return [self.event(MemberAdded, context, role=role)]

    def change_role(self, context: Context, role: str) -> list[DomainEvent]:
        """Decide to change the role; nothing if it is that role already."""
        return [self.event(MemberRoleChanged, context, role=role)] if self.role != role else []

    def remove(self, context: Context) -> list[DomainEvent]:
        """Decide to remove the member; nothing if removed already."""
        return [self.event(MemberRemoved, context)] if self.active else []

    def erase(self, context: Context) -> list[DomainEvent]:
        """Decide to forget the person, who stops being a member with it; nothing if that is done."""
        if self.erased:
            return []
        events = self.remove(context)
        before = self.after(events[0]) if events else self
        return [*events, before.event(MemberErased, context)]

    def applied(self, event: DomainEvent) -> "Member":
        """Return what `event` changes."""
        match event:
            case MemberAdded():
                return structs.replace(self, active=True, role=event.role, erased=False)
            case MemberRoleChanged():
                return structs.replace(self, role=event.role)
            case MemberRemoved():
                return structs.replace(self, active=False)
            case _:
                return structs.replace(self, erased=True)
