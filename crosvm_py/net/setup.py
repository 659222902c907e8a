# SPDX-License-Identifier: BSD-3-Clause
"""The host's side of network cards: open, check and configure TAPs, before the fork.

The kernel removes what is made here when its last descriptor is closed, even after a kill.
"""

from __future__ import annotations

import errno
import os

from crosvm_py.net.passt import rehearse_passt, start_passt
from devices.virtio.net.header import HEADER_BYTES
from devices.virtio.net.state import NetSpec
from sys_util import tap
from sys_util.errors import ConfigError, HostError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from typing import NoReturn

    from crosvm_py.config import NetworkSpec

log = get_logger("crosvm.run")

VHOST_NET: Final = "/dev/vhost-net"
_NEW_TAP: Final = "crosvm%d"

_HOW_TO_GET_ONE: Final = (
    "make one with: ip tuntap add dev {name} mode tap{multi} user {user} && ip link set {name} up; "
    "or use --net user, which needs no privileges"
)
_MODPROBE: Final = "load the module: modprobe tun"
_ALL_OFFLOADS: Final = tap.TUN_F_CSUM | tap.TUN_F_TSO4 | tap.TUN_F_TSO6 | tap.TUN_F_TSO_ECN
_USO: Final = tap.TUN_F_USO4 | tap.TUN_F_USO6


class Network(NamedTuple):
    """One card, ready for its device: its facts, and its descriptors, which the caller owns.

    The last ``vhosts`` descriptors are of /dev/vhost-net.
    """

    spec: NetSpec
    fds: tuple[int, ...]
    vhosts: int = 0


def rehearse_network(spec: NetworkSpec) -> Network:
    """Open the host's side of one card, but start no program and configure nothing.

    Raises:
        ConfigError: the interface does not exist, or is no TAP.
        HostError: the host refuses to open it.
    """
    facts = NetSpec(
        spec.mac or _random_mac(), spec.mtu, spec.pairs, tap=not spec.user, limits=spec.limits
    )
    if spec.user:
        return Network(facts, (rehearse_passt(spec),))
    fds = [os.dup(fd) for fd in _check_adopted(spec)] if spec.tap_fds else _open(spec)
    if not spec.vhost:
        return Network(facts, tuple(fds))
    try:
        vhosts = _open_vhost(spec)
    except HostError:
        _close(fds)
        raise
    return Network(facts, (*fds, *vhosts), len(vhosts))


def open_network(spec: NetworkSpec) -> Network:
    """Open the host's side of one card: its TAP, or a passt process.

    Of descriptors that the spec names it takes duplicates.

    Raises:
        ConfigError: the interface does not exist, or is no TAP.
        HostError: the host refuses to open it.
    """
    mac = spec.mac or _random_mac()
    if spec.user:
        fd = start_passt(spec)
        return Network(NetSpec(mac, spec.mtu, tap=False, limits=spec.limits), (fd,))
    fds = _adopt(spec) if spec.tap_fds else _open(spec)
    try:
        for fd in fds:
            tap.set_header_size(fd, HEADER_BYTES)
        name, _ = tap.describe_queue(fds[0])
        mtu = _configure(spec, name)
        facts = NetSpec(mac, mtu, spec.pairs, uso=_has_uso(fds[0]), limits=spec.limits)
        if spec.vhost:
            vhosts = _open_vhost(spec)
            return Network(facts, (*fds, *vhosts), len(vhosts))
        return Network(facts, tuple(fds))
    except (OSError, HostError) as error:
        _close(fds)
        if isinstance(error, HostError):
            raise
        raise HostError("set up", f"the TAP of {spec.option}") from error


def _random_mac() -> bytes:
    """Return a random address: locally administered, not multicast."""
    return bytes([0x52, 0x54, 0x00, *os.urandom(3)])


def _adopt(spec: NetworkSpec) -> list[int]:
    """Check inherited TAP descriptors, and return duplicates, which do not block."""
    fds = [os.dup(fd) for fd in _check_adopted(spec)]
    for fd in fds:
        os.set_blocking(fd, False)
    return fds


def _check_adopted(spec: NetworkSpec) -> list[int]:
    """Check inherited TAP descriptors."""
    fds = list(spec.tap_fds)
    names = set()
    for fd in fds:
        what = f"{spec.option}: tap-fd={fd}"
        if fd < 3:
            raise ConfigError(f"{what} is a standard stream")
        try:
            name, flags = tap.describe_queue(fd)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise ConfigError(f"{what} is not open") from None
            raise ConfigError(f"{what} is not a TAP with an interface") from None
        if not tap.is_tap(flags):
            raise ConfigError(f"{what} ({name}) must be a TAP with IFF_NO_PI and IFF_VNET_HDR")
        names.add(name)
    if len(names) > 1:
        shown = " and ".join(sorted(names))
        raise ConfigError(f"{spec.option}: descriptors of different TAPs: {shown}")
    return fds


def _open(spec: NetworkSpec) -> list[int]:
    """Open every queue of the TAP that the user named, or of a new one."""
    name = spec.tap_name or _NEW_TAP
    multi = spec.pairs > 1
    if spec.tap_name and not spec.makes:
        with tap.Interfaces() as interfaces:
            if not interfaces.exists(name):
                hint = _hint(name, multi=multi)
                raise ConfigError(f"{spec.option}: there is no TAP {name} ({hint})")
    fds: list[int] = []
    try:
        for _ in range(spec.pairs):
            fd, name = _open_queue(name, multi=multi, either=bool(spec.tap_name) and not multi)
            fds.append(fd)
    except OSError as error:
        _close(fds)
        _refuse(spec, name, error)
    return fds


def _open_queue(name: str, *, multi: bool, either: bool) -> tuple[int, str]:
    """Open one queue; with ``either`` also one queue of a TAP made with ``multi_queue``."""
    try:
        return tap.open_queue(name, multi_queue=multi)
    except OSError as error:
        if not either or error.errno != errno.EINVAL:
            raise
    return tap.open_queue(name, multi_queue=True)


def _refuse(spec: NetworkSpec, name: str, error: OSError) -> NoReturn:
    """Raise an error that says what can be done about a TAP that does not open."""
    option, multi = spec.option, spec.pairs > 1
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        raise HostError("open", tap.TUN_PATH, _MODPROBE) from error
    if error.filename == tap.TUN_PATH:
        raise HostError("open", tap.TUN_PATH, "it needs mode 0666, or --net user") from error
    if error.errno == errno.EBUSY:
        raise ConfigError(f"{option}: the TAP {name} is in use by another process") from None
    if not spec.tap_name:
        hint = _hint("tap0", multi=multi) + " then --net tap-name=tap0"
        raise HostError(f"{option}: make", "a TAP", hint) from error
    if error.errno == errno.EPERM:
        raise HostError(f"{option}: open", f"the TAP {name}", _hint(name, multi=multi)) from error
    if error.errno in (errno.EINVAL, errno.E2BIG):
        queues = f" with {spec.pairs} queues (multi_queue)" if multi else ""
        raise ConfigError(f"{option}: {name} is not a TAP{queues}") from None
    raise HostError(f"{option}: open", f"the TAP {name}") from error


def _hint(name: str, *, multi: bool) -> str:
    user = os.environ.get("USER") or str(os.geteuid())
    return _HOW_TO_GET_ONE.format(name=name, multi=" multi_queue" if multi else "", user=user)


def _configure(spec: NetworkSpec, name: str) -> int:
    """Give the TAP its address and MTU, and bring it up; return the MTU that it has."""
    option = spec.option
    with tap.Interfaces() as interfaces:
        try:
            if spec.host_ip:
                interfaces.set_address(name, spec.host_ip, spec.netmask)
        except OSError as error:
            raise HostError(f"{option}: give the TAP {name}", "its address") from error
        # An inherited descriptor may belong to another network namespace, where we see no names.
        if spec.tap_fds and not interfaces.exists(name):
            return spec.mtu or 1500
        try:
            if spec.mtu and spec.mtu != interfaces.mtu(name):
                interfaces.set_mtu(name, spec.mtu)
        except OSError as error:
            hint = f"ip link set {name} mtu {spec.mtu}"
            raise HostError(f"{option}: give the TAP {name}", f"MTU {spec.mtu}", hint) from error
        try:
            interfaces.bring_up(name)
        except OSError as error:
            if not spec.tap_fds:
                raise HostError(
                    f"{option}: bring up", f"the TAP {name}", f"ip link set {name} up"
                ) from error
            # Whoever made it may yet bring it up.
            log.warning("%s: the TAP %s is down: ip link set %s up", option, name, name)
        return interfaces.mtu(name)


def _open_vhost(spec: NetworkSpec) -> list[int]:
    """Open one kernel device for each pair of queues.

    Raises:
        HostError: the device does not exist, or we may not open it.
    """
    fds: list[int] = []
    try:
        for _ in range(spec.pairs):
            fds.append(os.open(VHOST_NET, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        _close(fds)
        missing = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
        hint = "modprobe vhost_net" if missing else "or leave vhost-net out"
        raise HostError(f"{spec.option}: open", VHOST_NET, hint) from error
    return fds


def _has_uso(fd: int) -> bool:
    """Return whether the host supports UDP segmentation offload (Linux 6.2), and leave it off."""
    try:
        tap.set_offloads(fd, _ALL_OFFLOADS | _USO)
    except OSError:
        return False
    tap.set_offloads(fd, 0)
    return True


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
