# SPDX-License-Identifier: BSD-3-Clause
"""The common configuration registers (virtio 1.3 §4.1.4.3), decoded.

A register answers accesses of its own size. The 64-bit ones can be accessed as a whole or by halves
of 32 bits. Any other access reads all ones and writes nothing.
"""

from __future__ import annotations

from devices.bus import all_ones
from devices.virtio.transport.interrupts import VIRTIO_MSI_NO_VECTOR
from sys_util.typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.transport.device_state import DeviceState
    from devices.virtio.transport.queue_state import QueueState

COMMON_CONFIG_BYTES: Final = 0x40

DEVICE_FEATURE_SELECT: Final = 0x00
DEVICE_FEATURE: Final = 0x04
DRIVER_FEATURE_SELECT: Final = 0x08
DRIVER_FEATURE: Final = 0x0C
CONFIG_MSIX_VECTOR: Final = 0x10
NUM_QUEUES: Final = 0x12
DEVICE_STATUS: Final = 0x14
CONFIG_GENERATION: Final = 0x15
QUEUE_SELECT: Final = 0x16
QUEUE_SIZE: Final = 0x18
QUEUE_MSIX_VECTOR: Final = 0x1A
QUEUE_ENABLE: Final = 0x1C
QUEUE_NOTIFY_OFF: Final = 0x1E
QUEUE_DESC: Final = 0x20
QUEUE_DRIVER: Final = 0x28
QUEUE_DEVICE: Final = 0x30
QUEUE_NOTIFY_DATA: Final = 0x38
QUEUE_RESET: Final = 0x3A
ADMIN_QUEUE_INDEX: Final = 0x3C
ADMIN_QUEUE_NUM: Final = 0x3E

_ADDRESSES_END: Final = QUEUE_NOTIFY_DATA

# Feature bits come in words of 32; drivers may write zeros beyond the second.
_FEATURE_WORDS: Final = 4
_WORD: Final = 0xFFFF_FFFF


class CommonConfig:
    """The registers over ``DeviceState``; the only state here is the three selectors."""

    def __init__(self, state: DeviceState) -> None:
        self.state = state
        self.reset()

    def reset(self) -> None:
        """Return to the state in which the machine starts."""
        self.device_feature_select = 0
        self.driver_feature_select = 0
        self.queue_select = 0

    @property
    def queue(self) -> QueueState | None:
        """The selected queue, if the device has it."""
        queues = self.state.queues
        return queues[self.queue_select] if self.queue_select < len(queues) else None

    @property
    def configurable_queue(self) -> QueueState | None:
        """The selected queue, if the driver may change it."""
        queue = self.queue
        return queue if queue is not None and self.state.configurable(queue) else None

    def read(self, offset: int, size: int) -> int:
        if QUEUE_DESC <= offset < _ADDRESSES_END:
            return self._read_address(offset, size)
        reader = _READERS.get((offset, size))
        return all_ones(size) if reader is None else reader(self)

    def write(self, offset: int, size: int, value: int) -> None:
        if QUEUE_DESC <= offset < _ADDRESSES_END:
            self._write_address(offset, size, value)
            return
        writer = _WRITERS.get((offset, size))
        if writer is not None:
            writer(self, value)

    def _read_address(self, offset: int, size: int) -> int:
        if size not in (4, 8) or offset % size:
            return all_ones(size)
        queue = self.queue
        if queue is None:
            return 0
        part, byte = divmod(offset - QUEUE_DESC, 8)
        return queue.addresses[part] >> 8 * byte & all_ones(size)

    def _write_address(self, offset: int, size: int, value: int) -> None:
        queue = self.configurable_queue
        if size not in (4, 8) or offset % size or queue is None:
            return
        part, byte = divmod(offset - QUEUE_DESC, 8)
        mask = all_ones(size) << 8 * byte
        queue.addresses[part] = queue.addresses[part] & ~mask | value << 8 * byte


def _feature_word(features: int, select: int) -> int:
    return features >> 32 * select & _WORD if select < _FEATURE_WORDS else 0


def _write_device_feature_select(registers: CommonConfig, value: int) -> None:
    registers.device_feature_select = value


def _write_driver_feature_select(registers: CommonConfig, value: int) -> None:
    registers.driver_feature_select = value


def _write_driver_feature(registers: CommonConfig, value: int) -> None:
    select = registers.driver_feature_select
    if select < _FEATURE_WORDS:
        others = registers.state.driver_features & ~(_WORD << 32 * select)
        registers.state.set_driver_features(others | value << 32 * select)


def _write_config_msix_vector(registers: CommonConfig, value: int) -> None:
    interrupts = registers.state.interrupts
    interrupts.config_vector = interrupts.checked_vector(value)


def _write_queue_select(registers: CommonConfig, value: int) -> None:
    registers.queue_select = value


def _write_queue_size(registers: CommonConfig, value: int) -> None:
    queue = registers.configurable_queue
    if queue is not None and 0 < value <= queue.max_size and value & (value - 1) == 0:
        queue.size = value


def _write_queue_msix_vector(registers: CommonConfig, value: int) -> None:
    queue = registers.configurable_queue
    if queue is not None:
        queue.vector = registers.state.interrupts.checked_vector(value)


def _write_queue_enable(registers: CommonConfig, value: int) -> None:
    queue = registers.queue
    if queue is not None and value == 1:
        registers.state.enable_queue(queue)


def _write_queue_reset(registers: CommonConfig, value: int) -> None:
    queue = registers.queue
    if queue is not None and value == 1:
        registers.state.reset_queue(queue)


def _of_queue(read: Callable[[QueueState], int], absent: int = 0) -> _Reader:
    """Return a reader of the selected queue; it returns ``absent`` if there is no such queue."""

    def reader(registers: CommonConfig) -> int:
        queue = registers.queue
        return absent if queue is None else read(queue)

    return reader


_Reader: TypeAlias = "Callable[[CommonConfig], int]"
_Writer: TypeAlias = "Callable[[CommonConfig, int], None]"

_READERS: Final[dict[tuple[int, int], _Reader]] = {
    (DEVICE_FEATURE_SELECT, 4): lambda c: c.device_feature_select,
    (DEVICE_FEATURE, 4): lambda c: _feature_word(c.state.offered_features, c.device_feature_select),
    (DRIVER_FEATURE_SELECT, 4): lambda c: c.driver_feature_select,
    (DRIVER_FEATURE, 4): lambda c: _feature_word(c.state.driver_features, c.driver_feature_select),
    (CONFIG_MSIX_VECTOR, 2): lambda c: c.state.interrupts.config_vector,
    (NUM_QUEUES, 2): lambda c: len(c.state.queues),
    (DEVICE_STATUS, 1): lambda c: c.state.status,
    (CONFIG_GENERATION, 1): lambda c: c.state.config.read_generation(),
    (QUEUE_SELECT, 2): lambda c: c.queue_select,
    (QUEUE_SIZE, 2): _of_queue(lambda queue: queue.size),
    (QUEUE_MSIX_VECTOR, 2): _of_queue(lambda queue: queue.vector, VIRTIO_MSI_NO_VECTOR),
    (QUEUE_ENABLE, 2): _of_queue(lambda queue: int(queue.enabled)),
    (QUEUE_NOTIFY_OFF, 2): _of_queue(lambda queue: queue.index),
    (QUEUE_NOTIFY_DATA, 2): lambda c: 0,  # VIRTIO_F_NOTIF_CONFIG_DATA is not offered
    (QUEUE_RESET, 2): _of_queue(lambda queue: int(queue.resetting)),
    (ADMIN_QUEUE_INDEX, 2): lambda c: 0,  # VIRTIO_F_ADMIN_VQ is not offered
    (ADMIN_QUEUE_NUM, 2): lambda c: 0,
}

_WRITERS: Final[dict[tuple[int, int], _Writer]] = {
    (DEVICE_FEATURE_SELECT, 4): _write_device_feature_select,
    (DRIVER_FEATURE_SELECT, 4): _write_driver_feature_select,
    (DRIVER_FEATURE, 4): _write_driver_feature,
    (CONFIG_MSIX_VECTOR, 2): _write_config_msix_vector,
    (DEVICE_STATUS, 1): lambda c, value: c.state.write_status(value),
    (QUEUE_SELECT, 2): _write_queue_select,
    (QUEUE_SIZE, 2): _write_queue_size,
    (QUEUE_MSIX_VECTOR, 2): _write_queue_msix_vector,
    (QUEUE_ENABLE, 2): _write_queue_enable,
    (QUEUE_RESET, 2): _write_queue_reset,
}
