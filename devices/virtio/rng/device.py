# SPDX-License-Identifier: BSD-3-Clause
"""virtio-rng: host entropy for the guest (virtio 1.3 §5.4).

Queues:      0 requestq, device-writable buffers only
Features:    none of its own
Config:      empty
Kept fds:    none; getrandom(2) needs no descriptor
"""

from __future__ import annotations

import os

from devices.virtio.limited import LimitedDevice
from devices.virtio.queue.chain import ChainError
from devices.virtio.queue.servers import ChainServer
from devices.virtio.rate_limiter import RATE_LIMITS, RateLimits
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U32

if TYPE_CHECKING:
    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.servers import QueueServer, StartedQueue
    from sys_util.wire import Check

REQUEST_QUEUE: Final = 0

# Descriptors of one chain may overlap, so the driver can claim far more bytes than it owns.
# §5.4.6.2 lets the device fill less than the whole buffer; this bounds the host's work.
MAX_FILL_BYTES: Final = 64 * 1024


@fact
class RngSpec:
    """What the user asked for: at most ``max_fill_bytes`` of randomness for one request."""

    TYPE: ClassVar[int] = 4
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, RATE_LIMITS)
    max_fill_bytes: int = MAX_FILL_BYTES
    limits: RateLimits = RateLimits()


class Rng(LimitedDevice):
    """Fill the driver's buffers with host randomness."""

    name: ClassVar[str] = "rng"
    device_type: ClassVar[int] = 4
    queue_sizes: ClassVar[tuple[int, ...]] = (256,)
    seccomp_policy: ClassVar[str] = "rng_device"
    in_order: ClassVar[bool] = True

    def __init__(self, spec: RngSpec) -> None:
        super().__init__(spec.limits)
        self._max_fill_bytes = spec.max_fill_bytes

    def features(self) -> int:
        return 0

    def config(self) -> bytes:
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """There is no configuration to write."""

    def activate(self, features: int) -> None:
        """No feature changes anything."""

    def make_server(self, queue: StartedQueue) -> QueueServer:
        return ChainServer(queue, self)

    def request_bytes(self, chain: DescriptorChain) -> int:
        return min(chain.writer.remaining, self._max_fill_bytes)

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        writer = chain.writer
        if chain.reader.remaining:
            raise ChainError(chain.head, "device-readable buffer on requestq (§5.4.6.1)")
        if not writer.remaining:
            raise ChainError(chain.head, "no buffer to fill")
        writer.write(os.getrandom(min(writer.remaining, self._max_fill_bytes)))
