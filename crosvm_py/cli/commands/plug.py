# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm plug`` and ``crosvm unplug``: devices that come and go while the guest runs."""

from __future__ import annotations

import os

from crosvm_py.cli.commands.asking import SOCKET, ask_for, device_name
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional
from crosvm_py.cli.output import write_out
from crosvm_py.kinds.order import pack_spec
from crosvm_py.requests.plug import MAX_PATH_BYTES, MAX_SPEC_BYTES, Plug, Plugged, Unplug
from crosvm_py.requests.protocol import Done
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments


def _read_disk(option: str, text: str) -> Plug:
    from crosvm_py.cli.run_options.plugged import read_disk

    spec, place = read_disk(option, text)
    return Plug("block", pack_spec(spec, path=""), _path(option, spec.path), *place)


def _read_net(option: str, text: str) -> Plug:
    from crosvm_py.cli.run_options.plugged import read_net
    from crosvm_py.kinds.later import LaterCard

    spec, place = read_net(option, text)
    card = LaterCard(
        *(spec.tap_name, spec.mac, spec.pairs, spec.mtu, spec.limits, spec.vhost),
        host_ip=spec.host_ip,
        netmask=spec.netmask,
    )
    return Plug("net", pack_spec(card), b"", *place)


def _read_vsock(option: str, text: str) -> Plug:
    from crosvm_py.cli.run_options.plugged import read_vsock

    spec, place = read_vsock(option, text)
    return Plug("vsock", pack_spec(spec, socket=None), _path(option, spec.socket or ""), *place)


def _read_rng(option: str, text: str) -> Plug:
    from crosvm_py.cli.run_options.plugged import read_rng

    spec, place = read_rng(option, text)
    return Plug("rng", pack_spec(spec), b"", *place)


_KINDS: Final[dict[str, Callable[[str, str], Plug]]] = {
    "disk": _read_disk,
    "net": _read_net,
    "vsock": _read_vsock,
    "rng": _read_rng,
}
_NEEDS_NO_VALUE: Final = ("rng",)


def _path(option: str, path: str) -> bytes:
    """Return a path as the VM can use it, whose working directory is another one."""
    encoded = os.fsencode(os.path.abspath(path))
    if len(encoded) > MAX_PATH_BYTES:
        raise UsageError(f"{option}: a path of {len(encoded)} bytes, at most {MAX_PATH_BYTES}")
    return encoded


def _plug(arguments: Arguments, _settings: GlobalSettings) -> int:
    words, path = arguments.positional
    kind, equals, value = words.partition("=")
    read = _KINDS.get(kind)
    if read is None or not (equals or kind in _NEEDS_NO_VALUE):
        kinds = " or ".join(f"{known}=…" for known in _KINDS)
        raise UsageError(f"plug: {words!r:.40} is not {kinds}")
    request = read(f"plug {kind}", value)
    if len(request.spec) > MAX_SPEC_BYTES:
        raise UsageError(f"plug {kind}: more values than one request can have")
    answer = ask_for(path, request, Plugged)
    write_out(f"{answer.id} {answer.bdf}\n")
    return 0


def _unplug(arguments: Arguments, _settings: GlobalSettings) -> int:
    device, path = arguments.positional
    ask_for(path, Unplug(device_name("unplug", device)), Done)
    return 0


PLUG: Final = Command(
    "plug",
    "plug a device into a running VM; prints its name and its PCI address",
    (),
    (
        Positional(
            "KIND=VALUE",
            "disk=PATH[,KEY=VALUE…] with the keys of run --block but root, "
            "net=TAP[,KEY=VALUE…] with those of run --net, vsock=CID,socket=PATH, or "
            "rng[=KEY=VALUE…] with those of run --rng; and device=NAME for its name, pci-slot=N "
            "and pci-segment=N for its PCI slot",
        ),
        SOCKET,
    ),
    _plug,
    examples=(
        "crosvm plug disk=data.img vm.sock",
        "crosvm plug disk=path=data.img,ro,device=data,pci-slot=6 vm.sock",
        "crosvm plug net=tap1,mac=52:54:00:12:34:57 vm.sock",
        "crosvm plug vsock=3,socket=/run/vm/v.sock vm.sock",
        "crosvm plug rng vm.sock",
    ),
)
UNPLUG: Final = Command(
    "unplug",
    "ask the guest to let a device go, and remove it when the guest has done so",
    (),
    (
        Positional("DEVICE", "a disk, a card or a vsock, or any device that was plugged in"),
        SOCKET,
    ),
    _unplug,
    examples=("crosvm unplug block:1 vm.sock",),
)
