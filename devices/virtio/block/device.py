# SPDX-License-Identifier: BSD-3-Clause
"""virtio-block: a disk from a raw image (virtio 1.3 §5.2).

Queues:      0..n requestq
Features:    SEG_MAX, BLK_SIZE, FLUSH, MQ; RO, or WRITE_ZEROES and, for sparse images, DISCARD
Config:      struct virtio_blk_config up to write_zeroes_may_unmap
Kept fds:    the image
"""

from __future__ import annotations

import time
from struct import Struct

from devices.virtio.block.latency import note
from devices.virtio.block.native import NativeDisk, NativeQueue
from devices.virtio.block.spec import BlockSpec
from devices.virtio.commands import CheckSize, DiskSize, Obeyed, SetSize
from devices.virtio.device import CommandError, RequestError
from devices.virtio.limited import LimitedDevice
from devices.virtio.queue import native
from devices.virtio.queue.chain import ChainError
from devices.virtio.queue.servers import ChainServer, EngineServer
from disk.image import SECTOR_BYTES, usable_bytes
from disk.raw import DiskFile
from sys_util.errors import ProtocolError
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, Self

if TYPE_CHECKING:
    from devices.virtio.commands import Command
    from devices.virtio.context import DeviceContext
    from devices.virtio.counters import Counters
    from devices.virtio.queue.chain import DescriptorChain, Reader, Writer
    from devices.virtio.queue.servers import QueueServer, StartedQueue
    from sys_util.wire import Message

VIRTIO_BLK_F_SEG_MAX: Final = 2
VIRTIO_BLK_F_RO: Final = 5
VIRTIO_BLK_F_BLK_SIZE: Final = 6
VIRTIO_BLK_F_FLUSH: Final = 9
VIRTIO_BLK_F_MQ: Final = 12
VIRTIO_BLK_F_DISCARD: Final = 13
VIRTIO_BLK_F_WRITE_ZEROES: Final = 14

VIRTIO_BLK_T_IN: Final = 0
VIRTIO_BLK_T_OUT: Final = 1
VIRTIO_BLK_T_FLUSH: Final = 4
VIRTIO_BLK_T_GET_ID: Final = 8
VIRTIO_BLK_T_DISCARD: Final = 11
VIRTIO_BLK_T_WRITE_ZEROES: Final = 13

VIRTIO_BLK_S_OK: Final = 0
VIRTIO_BLK_S_IOERR: Final = 1
VIRTIO_BLK_S_UNSUPP: Final = 2

VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP: Final = 1

QUEUE_SIZE: Final = 256
# One descriptor of a chain is the header and one the status.
SEG_MAX: Final = QUEUE_SIZE - 2

# The process does nothing else during one request, so each limit is about what a slow host does in
# 0.1 s. Zeros may have to be written; punching holes only changes the host's block map.
MAX_DISCARD_SECTORS: Final = (1 << 30) // SECTOR_BYTES
MAX_WRITE_ZEROES_SECTORS: Final = (64 << 20) // SECTOR_BYTES
MAX_SEGMENTS: Final = 32

# Offsets of files are signed.
MAX_SIZE_BYTES: Final = (1 << 63) - SECTOR_BYTES

# A hole that is smaller than a block of the host's file system frees nothing.
DISCARD_ALIGNMENT_BYTES: Final = 4096

_HEADER: Final = Struct("<IIQ")  # type, reserved, sector
_SEGMENT: Final = Struct("<QII")  # sector, num_sectors, flags
# capacity, size_max, seg_max, geometry, blk_size, topology, writeback, unused0, num_queues,
# three fields for discard, three for write zeroes, unused1
_CONFIG: Final = Struct("<Q I I 4x I 8x B x H 3I 2I B 3x")

_STATUS_OK: Final = bytes([VIRTIO_BLK_S_OK])
_FRAME_BYTES: Final = _HEADER.size + len(_STATUS_OK)


class BlockRequestError(RequestError):
    """A well-formed request that this device will not or cannot perform (§5.2.6.2)."""

    @classmethod
    def unsupported(cls, what: str) -> Self:
        """Build the answer to a request type or flag that the device does not know."""
        return cls(VIRTIO_BLK_S_UNSUPP, f"unsupported {what}")

    @classmethod
    def refused(cls, reason: str) -> Self:
        """Build the answer to a request that breaks a rule of the device."""
        return cls(VIRTIO_BLK_S_IOERR, reason)


class Block(LimitedDevice):
    """Read and write the sectors of an image."""

    name: ClassVar[str] = "block"
    device_type: ClassVar[int] = 2
    seccomp_policy: ClassVar[str] = "block_device"
    in_order: ClassVar[bool] = True

    def __init__(
        self, spec: BlockSpec, fd: int, *, engine: bool | None = None, threads: int = 0
    ) -> None:
        """Serve the image behind ``fd``, which the caller still owns.

        With ``engine`` native code serves what it can of the queues; by default, if it is built. If
        the spec is ``direct``, it does so with ``threads``.
        """
        super().__init__(spec.limits)
        self.queue_sizes = (QUEUE_SIZE,) * spec.num_queues
        self._spec = spec
        self._id = spec.id_bytes()
        self._file = DiskFile(fd, direct=spec.direct)
        self._capacity_sectors = self._usable_sectors(self._file.size_bytes)
        self._image_sectors = self._capacity_sectors  # the image's size as far as it is known
        self._active = 0  # the negotiated features
        engine = native.IS_BUILT if engine is None else engine
        self.native = (
            NativeDisk(fd, read_only=spec.read_only, cached=not spec.direct) if engine else None
        )
        self._cells: memoryview[int] | None = None
        self._threads = threads if spec.direct else 0

    def features(self) -> int:
        bits = [VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ]
        if self._spec.read_only:
            bits.append(VIRTIO_BLK_F_RO)
        else:
            bits.append(VIRTIO_BLK_F_WRITE_ZEROES)
            if self._spec.sparse:
                bits.append(VIRTIO_BLK_F_DISCARD)
        return sum(1 << bit for bit in bits)

    def config(self) -> bytes:
        block_size = self._spec.block_size
        alignment = max(block_size, DISCARD_ALIGNMENT_BYTES)
        return _CONFIG.pack(
            self._capacity_sectors,
            0,  # size_max
            SEG_MAX,
            block_size,
            0,  # writeback, for VIRTIO_BLK_F_CONFIG_WCE only
            len(self.queue_sizes),
            MAX_DISCARD_SECTORS,
            MAX_SEGMENTS,
            alignment // SECTOR_BYTES,
            MAX_WRITE_ZEROES_SECTORS,
            MAX_SEGMENTS,
            int(self._spec.sparse),
        )

    def write_config(self, offset: int, data: bytes) -> None:
        """Ignore it: the only writable field belongs to VIRTIO_BLK_F_CONFIG_WCE."""

    def count_in(self, counters: Counters) -> None:
        """Count reads and writes there, of queues that are started later."""
        self._cells = counters.specific
        if self.native is not None:
            self.native.cells = self._cells

    def attach(self, context: DeviceContext) -> None:
        super().attach(context)
        self.count_in(context.counters)
        if self.native is not None and self._threads:
            self.native.start_threads(self._threads)

    def activate(self, features: int) -> None:
        self._active = features
        # If the driver cannot flush, each write has to be on stable storage (§5.2.6.2).
        self._file.writethrough = not features >> VIRTIO_BLK_F_FLUSH & 1

    def make_server(self, queue: StartedQueue) -> QueueServer:
        if self.native is None:
            return ChainServer(queue, self)
        self.native.capacity_sectors = self._capacity_sectors
        self.native.writethrough = self._file.writethrough
        return EngineServer(queue, self, NativeQueue(self.native, queue))

    def reset(self) -> None:
        super().reset()
        self._active = 0

    def command(self, command: Command) -> Message:
        match command:
            case CheckSize(size_bytes):
                self._check_size(size_bytes)
                return DiskSize(self._capacity_sectors * SECTOR_BYTES)
            case SetSize(size_bytes, measured):
                if measured:
                    size_bytes = self._usable_sectors(size_bytes) * SECTOR_BYTES
                self._check_size(size_bytes)
                self._resize(size_bytes // SECTOR_BYTES)
            case _:
                return super().command(command)
        return Obeyed()

    def _usable_sectors(self, size_bytes: int) -> int:
        return usable_bytes(self._spec.block_size, size_bytes, self._file.alignment) // SECTOR_BYTES

    def _resize(self, sectors: int) -> None:
        """Change the capacity. A smaller one is set before the warden truncates the image."""
        before, self._capacity_sectors = self._capacity_sectors, sectors
        if self.native is not None:
            self.native.capacity_sectors = sectors
        if sectors >= before:
            self._image_sectors = sectors
        self.save()
        if sectors != before and self._context is not None:
            self._context.config_changed()

    def saved_fields(self) -> dict[str, object]:
        sectors = {
            "capacity_sectors": self._capacity_sectors,
            "image_sectors": self._image_sectors,
        }
        return super().saved_fields() | sectors

    def restore(self, fields: dict[str, object]) -> None:
        """See ``LimitedDevice``.

        If the last process ended while the disk grew, the image may be larger than it knew: use the
        new size. If it ended while the disk shrank, the warden may still have to truncate the
        image: keep the smaller capacity.
        """
        capacity, image = fields.get("capacity_sectors"), fields.get("image_sectors")
        block_sectors = self._spec.block_size // SECTOR_BYTES
        if type(capacity) is not int or capacity <= 0 or capacity % block_sectors:
            raise ProtocolError(f"capacity {brief(capacity)}")
        if type(image) is not int:
            raise ProtocolError(f"image {brief(image)}")
        super().restore(fields)
        if capacity < image:
            self._capacity_sectors = min(capacity, self._image_sectors)

    def _check_size(self, size_bytes: int) -> None:
        if self._spec.read_only:
            raise CommandError("a read-only disk keeps its size")
        if not 0 < size_bytes <= MAX_SIZE_BYTES:
            raise CommandError(f"{size_bytes} bytes is not in 1..{MAX_SIZE_BYTES}")
        for unit, name in (
            (SECTOR_BYTES, "sector"),
            (self._spec.block_size, "block-size"),
            (self._file.alignment, "alignment of direct"),
        ):
            if size_bytes % unit:
                raise CommandError(f"{size_bytes} bytes is not a multiple of the {name} {unit}")

    def request_bytes(self, chain: DescriptorChain) -> int:
        """Return the bytes of data, without header and status."""
        return max(0, super().request_bytes(chain) - _FRAME_BYTES)

    def moved_bytes(self, passed: int) -> int:
        """Return the bytes of data, and of zeros that had to be written."""
        return max(0, passed - _FRAME_BYTES) + self._file.take_stored_zeros()

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        writer = chain.writer
        if not writer.remaining:
            raise ChainError(chain.head, "no byte for the status")
        status = writer.split_at(writer.remaining - 1)
        try:
            self._execute(chain.reader, writer)
        except ChainError:
            status.write(bytes([VIRTIO_BLK_S_IOERR]))
            raise
        except RequestError as error:
            status.write(bytes([error.status]))
            raise
        except OSError as error:
            status.write(bytes([VIRTIO_BLK_S_IOERR]))
            raise BlockRequestError.refused(f"the image: {error.strerror}") from error
        status.write(_STATUS_OK)

    def _execute(self, reader: Reader, writer: Writer) -> None:
        """Carry out one request. All of ``writer`` is for data, without the byte of the status."""
        request_type, _, sector = reader.unpack(_HEADER)
        if request_type == VIRTIO_BLK_T_IN:
            begun = time.monotonic_ns()
            self._file.read(writer, self._offset(sector, writer.remaining))
            self._note(begun, write=False)
        elif request_type == VIRTIO_BLK_T_OUT:
            if self._spec.read_only:
                raise BlockRequestError.refused("write to a read-only disk")
            begun = time.monotonic_ns()
            self._file.write(reader, self._offset(sector, reader.remaining))
            self._note(begun, write=True)
        elif request_type == VIRTIO_BLK_T_FLUSH:
            if not self._spec.read_only:
                self._file.flush()
        elif request_type == VIRTIO_BLK_T_GET_ID:
            writer.write(self._id[: writer.remaining])
        elif request_type == VIRTIO_BLK_T_DISCARD:
            self._discard(reader)
        elif request_type == VIRTIO_BLK_T_WRITE_ZEROES:
            self._write_zeroes(reader)
        else:
            raise BlockRequestError.unsupported(f"request type {request_type}")

    def _note(self, begun_ns: int, *, write: bool) -> None:
        if self._cells is not None:
            note(self._cells, time.monotonic_ns() - begun_ns, write=write)

    def _discard(self, reader: Reader) -> None:
        if not self._active >> VIRTIO_BLK_F_DISCARD & 1:
            raise BlockRequestError.unsupported("discard, which was not negotiated")
        for offset, length, _ in self._segments(reader, MAX_DISCARD_SECTORS, known_flags=0):
            self._file.discard(offset, length)

    def _write_zeroes(self, reader: Reader) -> None:
        if not self._active >> VIRTIO_BLK_F_WRITE_ZEROES & 1:
            raise BlockRequestError.unsupported("write zeroes, which was not negotiated")
        for offset, length, flags in self._segments(
            reader, MAX_WRITE_ZEROES_SECTORS, known_flags=VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
        ):
            self._file.write_zeroes(offset, length, unmap=bool(flags) and self._spec.sparse)

    def _segments(
        self, reader: Reader, max_sectors: int, *, known_flags: int
    ) -> list[tuple[int, int, int]]:
        """Return offset, length and flags of each range, after all of them were checked."""
        count, rest = divmod(reader.remaining, _SEGMENT.size)
        if rest or not 0 < count <= MAX_SEGMENTS:
            raise BlockRequestError.refused(f"{reader.remaining} bytes of ranges")
        ranges: list[tuple[int, int, int]] = []
        for _ in range(count):
            sector, num_sectors, flags = reader.unpack(_SEGMENT)
            if flags & ~known_flags:
                raise BlockRequestError.unsupported(f"range flags {flags:#x}")
            if num_sectors > max_sectors:
                raise BlockRequestError.refused(f"range of {num_sectors:#x} sectors")
            length = num_sectors * SECTOR_BYTES
            offset = self._offset(sector, length)
            if length:
                ranges.append((offset, length, flags))
        return ranges

    def _offset(self, sector: int, length: int) -> int:
        """Return the offset of ``sector``, if the disk has ``length`` bytes from there."""
        if length % SECTOR_BYTES:
            raise BlockRequestError.refused(f"{length} bytes is not whole sectors")
        if sector + length // SECTOR_BYTES > self._capacity_sectors:
            raise BlockRequestError.refused(f"{length} bytes at sector {sector:#x} leave the disk")
        return sector * SECTOR_BYTES
