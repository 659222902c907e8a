# SPDX-License-Identifier: BSD-3-Clause
"""Run the vCPUs, one thread each, and handle their exits.

A vCPU thread calls devices itself, through the two buses. Requests of other threads (pause, resume,
stop) are carried out between two entries into the guest, after KVM has completed the last exit:
``immediate_exit`` makes KVM_RUN complete it and return.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time

from crosvm_py.exit_status import VmExit
from crosvm_py.machine.vcpu_exit import StoppedVcpu, VmExitReason, ended_by_exit
from kvm.run_page import KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_MMIO, RunPage
from kvm.vcpu import install_kick_handler, kick_thread
from sys_util import linux, signal
from sys_util.errors import NO_MORE_PROCESSES, HostError, remedy_for
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

log = get_logger("crosvm_py.vcpu")

# A real-time signal that is used for nothing but to interrupt KVM_RUN.
KICK_SIGNAL: Final[int] = signal.SIGRTMIN + 1

# Signals for the main thread. In a vCPU thread they would only cause a useless exit.
_OTHERS_SIGNALS: Final = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGCHLD,
        signal.SIGTSTP,
        signal.SIGWINCH,
    }
)

_RUNNING: Final = 0
_PAUSED: Final = 1
_STOPPING: Final = 2

_WHOLE_ACCESS: Final = frozenset({1, 2, 4, 8})


class IoBus(Protocol):
    """The part of ``devices.bus.Bus`` that exits need."""

    def read(self, address: int, size: int) -> int:
        """Return the little-endian value at ``address``; all ones if there is no device."""
        ...

    def write(self, address: int, size: int, value: int) -> None:
        """Store ``value`` at ``address``."""
        ...


class RunnableVcpu(StoppedVcpu, Protocol):
    """The part of a ``kvm.vcpu.Vcpu`` that the loop needs."""

    @property
    def page(self) -> memoryview:
        """The ``struct kvm_run`` page."""
        ...

    def run(self) -> int:
        """Enter the guest; return 0 or a negative ``errno``."""
        ...

    def mp_state(self) -> int:
        """Return the ``KVM_MP_STATE_…``; the call blocks while the vCPU is in the guest."""
        ...

    def set_immediate_exit(self, *, enabled: bool) -> None:
        """Make ``run`` complete the last exit and return."""
        ...

    def notify_paused(self) -> None:
        """Tell the guest that it was paused, so that its watchdogs do not fire."""
        ...


class VcpuLook(NamedTuple):
    """A vCPU at one moment: its thread, whether it is paused, and its innermost Python frame."""

    vcpu: RunnableVcpu
    thread_id: int
    held: bool
    frame: FrameType | None


class VcpuSet:
    """Every vCPU of a VM and its thread. Whoever made the vCPUs closes them.

    ``on_exit(index, reason)`` is called at most once, in the thread of the first vCPU whose exit
    ends the VM, and never after ``stop``. The other vCPUs run on until ``stop``. Do not call a
    method that waits while you hold the device-model lock, because a vCPU may need the lock.
    """

    def __init__(
        self,
        vcpus: Sequence[RunnableVcpu],
        pio: IoBus,
        mmio: IoBus,
        on_exit: Callable[[int, VmExitReason], None],
        *,
        hardware_virtualization: bool = True,
    ) -> None:
        self._on_exit = on_exit
        self._condition = threading.Condition()
        self._state = _PAUSED
        self._ended = False
        self._confine: Callable[[], None] | None = None
        self._unconfined = len(vcpus)  # how many threads have yet to confine themselves
        self._refusal: Exception | None = None  # what ``confine`` raised
        self._tids: dict[int, int] = {}  # thread ids of the kernel, by index of the vCPU
        self._parked: set[int] = set()  # the vCPUs that are paused
        runners = [
            _Runner(vcpu, pio, mmio, hardware_virtualization=hardware_virtualization)
            for vcpu in vcpus
        ]
        self._threads = [
            threading.Thread(target=self._thread, args=(runner,), name=f"vcpu{runner.vcpu.index}")
            for runner in runners
        ]
        self._vcpus = {vcpu.index: vcpu for vcpu in vcpus}
        self._idents: dict[int, int] = {}  # thread ids of Python, by index of the vCPU

    def start(self, *, paused: bool = False, confine: Callable[[], None] | None = None) -> None:
        """Start the threads. Do not fork afterwards: threads do not survive a fork.

        Args:
            paused: no vCPU enters the guest before ``resume``.
            confine: called in each thread before it runs the guest; it may raise.

        Raises:
            HostError: the kick signal cannot be handled, or the host makes no more threads.
        """
        install_kick_handler(KICK_SIGNAL)
        self._state = _PAUSED if paused else _RUNNING
        self._confine = confine
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:  # Python does not tell the errno
            raise HostError("start", "a thread for each vCPU", NO_MORE_PROCESSES) from error

    def wait_confined(self) -> None:
        """Wait until every thread is confined.

        Raises:
            Exception: what ``confine`` raised in a thread; that thread has ended.
        """
        with self._condition:
            self._condition.wait_for(lambda: not self._unconfined)
            if self._refusal is not None:
                raise self._refusal

    @property
    def count(self) -> int:
        """How many vCPUs there are."""
        return len(self._vcpus)

    @property
    def thread_ids(self) -> dict[int, int]:
        """The kernel's thread id of each running vCPU, by index."""
        with self._condition:
            return dict(self._tids)

    def look(self) -> tuple[VcpuLook, ...]:
        """Look at every vCPU without stopping any. Do not call it in a vCPU's thread."""
        with self._condition:
            tids, idents, parked = dict(self._tids), dict(self._idents), frozenset(self._parked)
        frames = sys._current_frames()
        return tuple(
            VcpuLook(vcpu, tids.get(index, 0), index in parked, frames.get(idents.get(index, 0)))
            for index, vcpu in sorted(self._vcpus.items())
        )

    def pause(self) -> None:
        """Ask every vCPU to pause; ``wait_paused`` waits until they have."""
        with self._condition:
            if self._state == _RUNNING:
                self._state = _PAUSED
                self._kick()

    def wait_paused(self, timeout_seconds: float) -> bool:
        """Wait until no vCPU is in the guest or in a device; return whether that is so.

        Return False on a timeout, or if another thread resumes or stops the VM meanwhile.
        """
        with self._condition:
            self._condition.wait_for(
                lambda: self._state != _PAUSED or self._all_parked(), timeout_seconds
            )
            return self._state == _PAUSED and self._all_parked()

    def _all_parked(self) -> bool:
        return self._parked >= self._tids.keys()

    def resume(self) -> None:
        """Let every paused vCPU go on."""
        with self._condition:
            if self._state == _PAUSED:
                self._state = _RUNNING
                self._condition.notify_all()

    def stop(self, timeout_seconds: float) -> bool:
        """End every thread; return whether all of them ended in time.

        A thread that did not end is stuck in a device call, or in the kernel.
        """
        with self._condition:
            self._state = _STOPPING
            self._condition.notify_all()
            self._kick()
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _kick(self) -> None:
        """Make every vCPU leave the guest. The caller holds the lock, so thread ids stay valid."""
        for index, tid in self._tids.items():
            self._vcpus[index].set_immediate_exit(enabled=True)
            kick_thread(tid, KICK_SIGNAL)

    def _thread(self, runner: _Runner) -> None:
        index = runner.vcpu.index
        signal.pthread_sigmask(signal.SIG_BLOCK, _OTHERS_SIGNALS)
        linux.set_process_name(f"vcpu{index}")  # Kata and libvirt look for this name
        if not self._enter(index):
            return
        try:
            reason = runner.run(self._gate)
        except Exception as error:  # thread entry: a bug must end the VM, not leave it hanging
            log.exception(error, "vCPU %d: a bug in the monitor ends the VM", index)
            reason = VmExitReason(VmExit.CRASH, f"vCPU {index}: {type(error).__name__}: {error}")
        finally:
            with self._condition:
                del self._tids[index]
                del self._idents[index]
                self._parked.discard(index)
                self._condition.notify_all()
        if reason is not None:
            self._report(index, reason)

    def _enter(self, index: int) -> bool:
        """Confine and register this thread; return False if it could not be confined."""
        tid = threading.get_native_id()
        refusal: Exception | None = None
        try:
            if self._confine is not None:
                self._confine()
        except Exception as error:  # noqa: BLE001 - ``wait_confined`` raises it again
            refusal = error
        with self._condition:
            self._unconfined -= 1
            if refusal is None:
                self._tids[index] = tid
                self._idents[index] = threading.get_ident()
            else:
                self._refusal = refusal
            self._condition.notify_all()
        return refusal is None

    def _report(self, index: int, reason: VmExitReason) -> None:
        with self._condition:
            first = not self._ended and self._state != _STOPPING
            self._ended = True
        if first:
            self._on_exit(index, reason)
        else:
            log.debug("%s (the VM was ending)", reason.text)

    def _gate(self, vcpu: RunnableVcpu) -> bool:
        """Wait while the VM is paused; return whether to run the guest again."""
        with self._condition:
            vcpu.set_immediate_exit(enabled=False)
            if self._state == _PAUSED:
                self._parked.add(vcpu.index)
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._state != _PAUSED)
                self._parked.discard(vcpu.index)
                vcpu.notify_paused()
            return self._state == _RUNNING


class _Runner:
    """The loop of one vCPU. It handles every exit, so attributes are looked up in advance."""

    def __init__(
        self, vcpu: RunnableVcpu, pio: IoBus, mmio: IoBus, *, hardware_virtualization: bool
    ) -> None:
        self.vcpu = vcpu
        self._page = RunPage(vcpu.page)
        self._pio = pio
        self._mmio = mmio
        self._hardware_virtualization = hardware_virtualization
        self._views = {1: self._page.u8, 2: self._page.u16, 4: self._page.u32}

    def run(self, gate: Callable[[RunnableVcpu], bool]) -> VmExitReason | None:
        """Run the guest until an exit ends the VM (return how), or ``gate`` returns False."""
        vcpu = self.vcpu
        enter, exit_reason = vcpu.run, self._page.exit_reason
        if not gate(vcpu):
            return None
        while True:
            result = enter()
            if result == 0:
                reason = exit_reason()
                if reason == KVM_EXIT_IO:
                    self._handle_io()
                elif reason == KVM_EXIT_MMIO:
                    self._handle_mmio()
                elif reason != KVM_EXIT_INTR:
                    return self._end(reason)
            elif result == -errno.EINTR or self._waits_for_startup(result):
                if not gate(vcpu):
                    return None
            else:
                error = OSError(-result, os.strerror(-result))
                hint = f" ({NO_MORE_PROCESSES})" if result == -errno.EAGAIN else remedy_for(error)
                text = f"vCPU {vcpu.index}: KVM_RUN: {error.strerror}{hint}"
                return VmExitReason(VmExit.CRASH, text)

    def _waits_for_startup(self, result: int) -> bool:
        """Return whether KVM_RUN failed because the vCPU waits for its start-up IPI.

        The first vCPU never waits for one. For it, EAGAIN means that KVM could not start a thread.
        """
        return result == -errno.EAGAIN and self.vcpu.index != 0

    def _end(self, exit_reason: int) -> VmExitReason:
        return ended_by_exit(
            self.vcpu,
            self._page,
            exit_reason,
            hardware_virtualization=self._hardware_virtualization,
        )

    def _handle_io(self) -> None:
        """Carry out IN and OUT, or every element of INS and OUTS that this exit covers."""
        direction, size, port, count, offset = self._page.io()
        view = self._views[size]
        first = offset // size
        if direction == KVM_EXIT_IO_IN:
            read = self._pio.read
            for at in range(first, first + count):
                view[at] = read(port, size)
        else:
            write = self._pio.write
            for at in range(first, first + count):
                write(port, size, view[at])

    def _handle_mmio(self) -> None:
        """Carry out a load or store. KVM splits an access across pages, even into odd sizes."""
        address, data, length, is_write = self._page.mmio()
        if length not in _WHOLE_ACCESS:
            self._handle_split_mmio(address, data, length, is_write=bool(is_write))
        elif is_write:
            self._mmio.write(address, length, data & ((1 << 8 * length) - 1))
        else:
            self._page.set_mmio_data(self._mmio.read(address, length))

    def _handle_split_mmio(self, address: int, data: int, length: int, *, is_write: bool) -> None:
        if is_write:
            for at in range(length):
                self._mmio.write(address + at, 1, data >> 8 * at & 0xFF)
        else:
            value = sum(self._mmio.read(address + at, 1) << 8 * at for at in range(length))
            self._page.set_mmio_data(value)
