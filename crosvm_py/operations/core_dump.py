# SPDX-License-Identifier: BSD-3-Clause
"""Write the memory of a guest and the registers of its vCPUs into a file; the VM stands still.

The opener has made the file. It is written in pieces on the event loop, so that clients are
answered meanwhile; a file system that hangs holds the loop up, though. What guest memory has no
pages for stays a hole. The header comes last: a file that is not complete is no ELF file. If it
cannot be completed, it is emptied, because we cannot remove it.
"""

from __future__ import annotations

import errno
import os
import stat

from crosvm_py.operations.operation import operation
from crosvm_py.requests.core_dump import MayDump, WriteCore
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Done, Failed
from crosvm_py.vmm.core_file import lay_out
from sys_util.errors import ConfigError, VmmError, describe
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crosvm_py.machine.board import Board
    from crosvm_py.machine.vcpu import VcpuSet
    from crosvm_py.operations.operation import Dumper, RunningVm
    from crosvm_py.operations.suspension import Suspension
    from crosvm_py.requests.protocol import Response
    from sys_util.event_loop import EventLoop
    from sys_util.guest_memory import GuestMemory, MemoryRegion

_log = get_logger("crosvm.vm")

# What is written between two looks at the event loop.
_TURN_BYTES: Final = 4 << 20
_TURN_PIECES: Final = 256
_ENDED: Final = "the VM ends"


class CoreDumper:
    """Dumps one VM, again and again. Use it in the loop's thread only."""

    def __init__(
        self, loop: EventLoop, machine: Board, vcpus: VcpuSet, suspension: Suspension
    ) -> None:
        # Takes the descriptors of the request that is carried out now; the caller owns them.
        self.take_fds: Callable[[], list[int]] = list
        self._loop = loop
        self._machine = machine
        self._vcpus = vcpus
        self._suspension = suspension
        self._finish: Callable[[str], None] | None = None  # ends the dump that is under way

    def check(self) -> None:
        """Check whether a dump can begin now.

        Raises:
            ConfigError: it cannot.
        """
        if self._finish is not None:
            raise ConfigError("another core dump is under way")
        if self._suspension.is_busy:
            raise ConfigError("a suspend or resume is under way: try again")

    def dump(self) -> Pending:
        """Write the file of the present request; a VM that runs is suspended meanwhile.

        Raises:
            ConfigError: it cannot begin now, or this is no new file.
        """
        fds = self.take_fds()
        try:
            self.check()
            if len(fds) != 1 or not _is_new_file(fds[0]):
                raise ConfigError("a core dump needs one new file")
        except ConfigError:
            for fd in fds:
                os.close(fd)
            raise
        pending, was_suspended = Pending(), self._suspension.is_suspended

        def finish(reason: str) -> None:
            self._finish = None
            answer = Failed(reason) if _close(fds[0], reason) else Done()
            self._suspension.let_go()
            if was_suspended or not self._suspension.is_suspended or reason == _ENDED:
                pending.complete(answer)
                return
            _when_known(self._suspension.resume(), lambda _resumed: pending.complete(answer))

        def suspended(answer: Response) -> None:
            if self._finish is not finish:
                return  # the VM ends
            if isinstance(answer, Failed):
                finish(answer.reason)
                return
            self._suspension.hold()
            self._begin(fds[0])

        self._finish = finish
        _when_known(self._suspension.suspend(), suspended)
        return pending

    def close(self) -> None:
        """End the dump that is under way, if there is one: the VM ends."""
        self._end(_ENDED)

    def _end(self, reason: str) -> None:
        if self._finish is not None:
            self._finish(reason)

    def _begin(self, fd: int) -> None:
        memory = self._machine.present_regions
        try:
            notes = self._machine.core_notes(self._vcpus.absent)
            core = lay_out([(each.gpa, each.size_bytes) for each in memory], notes)
            next(_copy(fd, core.size_bytes - 1, memoryview(b"\0")))  # the size is allowed
        except (VmmError, OSError) as error:
            self._end(_reason(error))
            return
        places = list(zip(memory, core.offsets, strict=True))
        writing = _write(fd, self._machine.memory, places, core.header)
        self._go_on(writing, self._finish)

    def _go_on(self, writing: Iterator[int], finish: Callable[[str], None] | None) -> None:
        if self._finish is not finish:
            return
        left = _TURN_BYTES
        try:
            for _ in range(_TURN_PIECES):
                left -= next(writing)
                if left <= 0:
                    break
        except StopIteration:
            self._end("")
        except OSError as error:
            self._end(_reason(error))
        else:
            self._loop.call_later(0.0, lambda: self._go_on(writing, finish))


def _is_new_file(fd: int) -> bool:
    found = os.fstat(fd)
    return stat.S_ISREG(found.st_mode) and not found.st_size


def _when_known(answer: Response | Pending, then: Callable[[Response], None]) -> None:
    if isinstance(answer, Pending):
        answer.deliver_to(then)
    else:
        then(answer)


def _reason(error: VmmError | OSError) -> str:
    return describe(error) if isinstance(error, VmmError) else f"{error.strerror}"


def _close(fd: int, reason: str) -> str:
    """Close the file, which is emptied if there is a reason why it is not complete."""
    if reason:
        _log.warning("the core dump is not complete: %s", reason)
        try:
            os.ftruncate(fd, 0)
        except OSError as error:
            _log.error("the file of the core dump cannot be emptied: %s", error.strerror)
    os.close(fd)
    return reason


def _write(
    fd: int, memory: GuestMemory, places: list[tuple[MemoryRegion, int]], header: bytes
) -> Iterator[int]:
    """Write piece by piece, the header last; return the size of each piece.

    Raises:
        OSError: the host refuses a piece.
    """
    for part, offset in places:
        region, view = next(
            (region, view)
            for region, view in memory.mappings
            if region.gpa <= part.gpa < region.gpa + region.size_bytes
        )
        for start, end in _pages(memory.fd, part):
            at = start - region.file_offset
            to = offset + start - part.file_offset
            yield from _copy(fd, to, view[at : at + end - start])
    yield from _copy(fd, 0, memoryview(header))


def _copy(fd: int, to: int, source: memoryview) -> Iterator[int]:
    done = 0
    while done < source.nbytes:
        os.lseek(fd, to + done, os.SEEK_SET)
        written = os.write(fd, source[done : done + _TURN_BYTES])
        done += written
        yield written


def _pages(memfd: int, part: MemoryRegion) -> Iterator[tuple[int, int]]:
    """Return where in the memfd a part of memory has pages: (start, end)."""
    at, limit = part.file_offset, part.file_offset + part.size_bytes
    while at < limit:
        start = _seek(memfd, at, os.SEEK_DATA, limit)
        if start >= limit:
            return
        at = min(_seek(memfd, start, os.SEEK_HOLE, limit), limit)
        yield start, at


def _seek(memfd: int, at: int, whence: int, limit: int) -> int:
    try:
        return os.lseek(memfd, at, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return limit
        return at if whence == os.SEEK_DATA else limit  # hugetlbfs does not know its holes


def _dumper(vm: RunningVm) -> Dumper:
    if vm.dumper is None:
        raise ConfigError("this VM cannot be dumped")
    return vm.dumper


@operation(MayDump)
def may_dump(vm: RunningVm, _request: MayDump) -> Done:
    """Answer whether a dump can begin now.

    Raises:
        ConfigError: it cannot.
    """
    _dumper(vm).check()
    return Done()


@operation(WriteCore)
def write_core(vm: RunningVm, _request: WriteCore) -> Pending:
    """Write the core file whose descriptor came with the request.

    Raises:
        ConfigError: no dump can begin now.
    """
    return _dumper(vm).dump()
