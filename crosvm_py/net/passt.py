# SPDX-License-Identifier: BSD-3-Clause
"""User-mode networking: a passt process for each card, which confines itself.

passt translates the guest's frames to ordinary sockets of its own. The device inherits a stream
socket to passt, and passt ends when that socket is closed, even if the vmm or the device is killed.
The vmm keeps no descriptor of it and does not have to stop it.
"""

from __future__ import annotations

import os
import sys

from sys_util import socket
from sys_util.errors import ConfigError, HostError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.config import Forward, NetworkSpec

log = get_logger("crosvm.net")

RESOLV_CONF: Final = "/etc/resolv.conf"
# Fields: interface, destination, gateway, flags, …, mask. Addresses are in hex, in the byte order
# of the processor.
ROUTES: Final = "/proc/net/route"
_ROUTE_MASK: Final = 7
# Fields: destination, its prefix, source, its prefix, next hop, …. Addresses are in hex.
ROUTES_6: Final = "/proc/net/ipv6_route"
_ROUTE_6_NEXT_HOP: Final = 4

# The network of a guest if the host has no gateway; QEMU uses the same addresses. passt translates
# all traffic to sockets, so these addresses never appear outside.
ISLAND_ADDRESS: Final = "10.0.2.15"
ISLAND_GATEWAY: Final = "10.0.2.2"
_ISLAND: Final = (
    *("--interface", "lo", "--address", ISLAND_ADDRESS, "--netmask", "24"),
    *("--gateway", ISLAND_GATEWAY, "--mac-addr", "52:55:0a:00:02:02"),
)

_PROGRAM: Final = "passt"
_ITS_FD: Final = 3
_STDOUT: Final = 1
_STDERR: Final = 2
_MOST_WORDS: Final = 16384

# Room for several frames of up to 64 KiB, since the device writes only whole frames. The kernel
# doubles the value for its overhead, and caps it.
_SEND_BUFFER_BYTES: Final = 256 * 1024

# Lines that passt prints to every root user, and on a system without a log daemon.
_NOISE: Final = ("Don't run as root", "Failed to send")


def start_passt(spec: NetworkSpec) -> int:
    """Start passt for one card; return our end of its socket, non-blocking, owned by the caller.

    passt goes into the background only when it is ready, so we see its errors before that.

    Raises:
        ConfigError: passt is not installed, or refuses to start.
        HostError: a port cannot be forwarded, or passt cannot be executed.
    """
    program = _find(spec.option)
    for forward in spec.forwards:
        _check_free(spec.option, forward)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with ours, theirs:
        status, words = _run(program, _arguments(spec), theirs.fileno())
        if status != 0:
            raise ConfigError(f"{spec.option}: passt: {_complaint(words) or f'status {status}'}")
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        return ours.detach()


def rehearse_passt(spec: NetworkSpec) -> int:
    """Check what can be checked without passt; return one end of a socket, owned by the caller.

    Raises:
        ConfigError: passt is not installed.
        HostError: a port cannot be forwarded.
    """
    _find(spec.option)
    for forward in spec.forwards:
        _check_free(spec.option, forward)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    theirs.close()
    return ours.detach()


def _find(option: str) -> str:
    for folder in os.get_exec_path():
        path = f"{folder}/{_PROGRAM}"
        if os.access(path, os.X_OK):
            return path
    raise ConfigError(f"{option}: user needs passt, which is not installed (apt install passt)")


def _arguments(spec: NetworkSpec) -> list[str]:
    words = ["--quiet", "--fd", str(_ITS_FD), "--mtu", str(spec.mtu)]
    gateway = _gateway()
    if not gateway and not _has_gateway_6():
        # passt copies the addresses of the interface with the default route; older versions end if
        # there is no default route (passt(1), --interface).
        words += _ISLAND
        gateway = ISLAND_GATEWAY
        log.info(
            "%s: this host has no gateway; the guest is %s, and reaches what the host reaches",
            *(spec.option, ISLAND_ADDRESS),
        )
    if not spec.host_loopback:
        words += ["--no-map-gw", *_resolver_arguments(gateway)]
    for forward in spec.forwards:
        option = "--tcp-ports" if forward.protocol == "tcp" else "--udp-ports"
        address = f"{forward.address}/" if forward.address else ""
        words += [option, f"{address}{forward.host_port}:{forward.guest_port}"]
    return words


def _resolver_arguments(gateway: str) -> list[str]:
    """Let the guest use a resolver at the host's loopback address, which it cannot reach itself.

    The resolver then answers at the gateway's address, at port 53 only. With any other address,
    the passt of Debian 12 would send the answers from the wrong address.
    """
    servers = [
        words[1] for words in _words(RESOLV_CONF) if len(words) > 1 and words[0] == "nameserver"
    ]
    if not servers or not gateway or not all(it.startswith(("127.", "::1")) for it in servers):
        return []
    return ["--dns", gateway, "--dns-forward", gateway]


def _gateway() -> str:
    """Return the IPv4 gateway of the first default route, or ""."""
    for words in _words(ROUTES):
        if len(words) > _ROUTE_MASK and words[1] == words[_ROUTE_MASK] == "00000000":
            raw = int(words[2], 16).to_bytes(4, sys.byteorder)
            return socket.inet_ntop(socket.AF_INET, raw) if any(raw) else ""
    return ""


def _has_gateway_6() -> bool:
    """Return whether there is an IPv6 default route that leads to a gateway."""
    return any(
        words[:2] == ["0" * 32, "00"] and words[_ROUTE_6_NEXT_HOP].strip("0")
        for words in _words(ROUTES_6)
        if len(words) > _ROUTE_6_NEXT_HOP
    )


def _words(path: str) -> list[list[str]]:
    """Return the words of each line of a file, or no lines if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return [line.split() for line in file]
    except OSError:
        return []


def _check_free(option: str, forward: Forward) -> None:
    """Check that the port is free: passt itself starts without the ports that it cannot get."""
    family = socket.AF_INET6 if ":" in forward.address else socket.AF_INET
    kind = socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind | socket.SOCK_CLOEXEC) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((forward.address, forward.host_port))
        except OSError as error:
            at = f"{forward.protocol} port {forward.host_port}"
            at += f" of {forward.address}" if forward.address else ""
            raise HostError(f"{option}: hostfwd: listen at", at) from error


def _run(program: str, arguments: Sequence[str], fd: int) -> tuple[int, str]:
    """Start passt with ``fd``; return its exit status and output once it is in the background."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.posix_spawn(
            program,
            [_PROGRAM, *arguments],
            {"PATH": os.defpath},
            setsigmask=(),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, write_fd, _STDOUT),
                (os.POSIX_SPAWN_DUP2, write_fd, _STDERR),
                (os.POSIX_SPAWN_DUP2, fd, _ITS_FD),
            ],
        )
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.set_blocking(read_fd, False)
        try:
            words = os.read(read_fd, _MOST_WORDS)
        except BlockingIOError:
            words = b""
    except OSError as error:
        raise HostError("start", program) from error
    finally:
        os.close(read_fd)
        os.close(write_fd)
    return status, words.decode(errors="replace")


def _complaint(words: str) -> str:
    """Return the last line of the output that is not noise."""
    lines = [line.strip() for line in words.splitlines()]
    told = [line for line in lines if line and not line.startswith(_NOISE)]
    return told[-1] if told else ""
