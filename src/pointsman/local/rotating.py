"""New keys for a control plane: which files change, and what must read them again, in which order.

The hub first where it is concerned, because it must know what the control plane is about to use. Called by `rotate` and
`retire`.
"""

from collections.abc import Callable
from pathlib import Path

from pointsman.local import orders
from pointsman.local.components import CONTROL_PLANE, HUB, Parts
from pointsman.local.layout import Layout, Ports


def turn(keys_folder: Path, kind: str, *, retires: bool) -> list[str]:
    """Rotate or retire one kind of key, and return what must be restarted for it, in order.

    Raises:
        FileNotFoundError: this is no keys folder.
        ValueError: the keys do not allow it; the text says why.
    """
    from controlplane.channel import keys

    actions: dict[tuple[str, bool], Callable[[Path], None]] = {
        ("ca", False): keys.rotate_authority,
        ("ca", True): keys.retire_authority,
        ("signing", False): keys.rotate_signing,
        ("signing", True): keys.retire_signing,
    }
    keys.read(keys_folder)
    actions[kind, retires](keys_folder)
    return [HUB, CONTROL_PLANE] if kind == "ca" else [CONTROL_PLANE]


def turn_in_folder(layout: Layout, kind: str, *, retires: bool) -> list[str]:
    """Do the same in a folder of `up`, and restart there what runs of it. Return the names of what was restarted."""
    concerned = turn(layout.keys, kind, retires=retires)
    running = {str(item["name"]) for item in orders.states(layout) if item["pid"] is not None}
    restarted = [name for name in concerned if name in running]
    for name in restarted:
        orders.stop(layout, name)
        if name == HUB:
            Parts(layout, Ports(layout)).hub()
        orders.start(layout, name)
    return restarted
