# SPDX-License-Identifier: BSD-3-Clause
"""vhost: virtqueues that the host's kernel serves (<linux/vhost.h>).

The kernel uses the mappings of guest memory of the process that owns the vhost device. So that
process has to make nearly all of these calls, and the device stops when it ends.
"""

from __future__ import annotations

import fcntl
from struct import Struct

from sys_util import linux
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from sys_util.guest_memory import GuestMemory

VHOST_GET_FEATURES: Final = 0x8008AF00
VHOST_SET_FEATURES: Final = 0x4008AF00
VHOST_SET_OWNER: Final = 0xAF01
VHOST_SET_MEM_TABLE: Final = 0x4008AF03
VHOST_SET_VRING_NUM: Final = 0x4008AF10
VHOST_SET_VRING_ADDR: Final = 0x4028AF11
VHOST_SET_VRING_BASE: Final = 0x4008AF12
VHOST_GET_VRING_BASE: Final = 0xC008AF12
VHOST_SET_VRING_KICK: Final = 0x4008AF20
VHOST_SET_VRING_CALL: Final = 0x4008AF21
VHOST_SET_VRING_ERR: Final = 0x4008AF22
VHOST_NET_SET_BACKEND: Final = 0x4008AF30
VHOST_VSOCK_SET_GUEST_CID: Final = 0x4008AF60
VHOST_VSOCK_SET_RUNNING: Final = 0x4004AF61

_U64: Final = Struct("Q")
_INT: Final = Struct("i")
_MEMORY: Final = Struct("II")  # nregions, padding
_REGION: Final = Struct("QQQQ")  # guest_phys_addr, memory_size, userspace_addr, flags_padding
_STATE: Final = Struct("II")  # index, num
_FILE: Final = Struct("Ii")  # index, fd
_ADDR: Final = Struct("IIQQQQ")  # index, flags, desc, used, avail, log

_DESC_BYTES: Final = 16


class VhostRing(NamedTuple):
    """The guest-physical addresses of one ring, which the caller has checked."""

    number: int
    size: int
    desc_table: int
    avail_ring: int
    used_ring: int


class Vhost:
    """A vhost device of the kernel. Owns its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def features(self) -> int:
        """Return the feature bits that the kernel offers."""
        found: int = _U64.unpack(self._call("features", VHOST_GET_FEATURES, bytes(8)))[0]
        return found

    def set_features(self, features: int) -> None:
        """Tell the kernel which features were negotiated."""
        self._call("features", VHOST_SET_FEATURES, _U64.pack(features))

    def set_owner(self) -> None:
        """Make this process the owner, whose memory the kernel uses. Call it once."""
        self._call("owner", VHOST_SET_OWNER, b"")

    def set_memory(self, memory: GuestMemory) -> None:
        """Tell the kernel where guest memory is mapped in this process: what is there now."""
        there = [
            (region.gpa, region.size_bytes, linux.buffer_address(memoryview(mapping)))
            for region, mapping in memory.mappings
            if not region.block_bytes
        ]
        for area in memory.hot_areas:
            base = linux.buffer_address(memoryview(area.view))
            for first, end in area.runs():
                at = first * area.block_bytes
                there.append((area.start + at, (end - first) * area.block_bytes, base + at))
        table = b"".join(_REGION.pack(*place, 0) for place in there)
        self._call("memory", VHOST_SET_MEM_TABLE, _MEMORY.pack(len(there), 0) + table)

    def set_ring(self, ring: VhostRing, next_avail: int, memory: GuestMemory) -> None:
        """Tell the kernel where a ring is, and the available index at which to start."""
        number, size = ring.number, ring.size
        self._call("ring size", VHOST_SET_VRING_NUM, _STATE.pack(number, size))
        self._call("ring base", VHOST_SET_VRING_BASE, _STATE.pack(number, next_avail))
        addresses = (
            linux.buffer_address(memory.view(gpa, length))
            for gpa, length in (
                (ring.desc_table, _DESC_BYTES * size),
                (ring.used_ring, 6 + 8 * size),
                (ring.avail_ring, 6 + 2 * size),
            )
        )
        self._call("ring", VHOST_SET_VRING_ADDR, _ADDR.pack(number, 0, *addresses, 0))

    def ring_base(self, number: int) -> int:
        """Return the available index that the kernel would take next."""
        state = self._call("ring base", VHOST_GET_VRING_BASE, _STATE.pack(number, 0))
        base: int = _STATE.unpack(state)[1]
        return base

    def set_eventfds(self, number: int, kick_fd: int, call_fd: int, error_fd: int) -> None:
        """Connect a ring with the driver by eventfds, which the caller still owns."""
        for what, request, fd in (
            ("kick", VHOST_SET_VRING_KICK, kick_fd),
            ("call", VHOST_SET_VRING_CALL, call_fd),
            ("error", VHOST_SET_VRING_ERR, error_fd),
        ):
            self._call(what, request, _FILE.pack(number, fd))

    def set_net_backend(self, number: int, tap_fd: int) -> None:
        """Let the kernel move frames between a ring and a TAP.

        -1 stops it: when this returns, the kernel has no buffer of the ring in use.
        """
        self._call("TAP", VHOST_NET_SET_BACKEND, _FILE.pack(number, tap_fd))

    def set_guest_cid(self, cid: int) -> None:
        """Set the vsock address of the guest.

        Raises:
            OSError: the kernel refuses it. The caller knows what each errno means.
        """
        fcntl.ioctl(self.fd, VHOST_VSOCK_SET_GUEST_CID, _U64.pack(cid))

    def set_vsock_running(self, *, running: bool) -> None:
        """Start or stop a vsock device. Once it is stopped, the kernel has no buffer in use."""
        self._call("start", VHOST_VSOCK_SET_RUNNING, _INT.pack(running))

    def _call(self, what: str, request: int, argument: bytes) -> bytes:
        try:
            return fcntl.ioctl(self.fd, request, argument)
        except OSError as error:
            raise HostError("set up vhost", what) from error
