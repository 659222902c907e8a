# SPDX-License-Identifier: BSD-3-Clause
"""Run the vCPUs, one thread each, and handle their exits.

A vCPU thread calls devices itself, through the two buses. Requests of other threads (pause, resume,
stop) are carried out between two entries into the guest, after KVM has completed the last exit:
``immediate_exit`` makes KVM_RUN complete it and return.
"""

from __future__ import annotations

import sys
import threading
import time

from crosvm_py.exit_status import VmExit
from crosvm_py.machine.vcpu_exit import VmExitReason
from crosvm_py.machine.vcpu_runner import VcpuRunner
from kvm.vcpu import install_kick_handler, kick_thread
from sys_util import linux, signal
from sys_util.errors import NO_MORE_PROCESSES, HostError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import FrameType

    from crosvm_py.machine.vcpu_runner import IoBus, RunnableVcpu

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


class VcpuLook(NamedTuple):
    """A vCPU at one moment: its thread and its innermost Python frame.

    It is ``held`` while the VM is paused, and ``spare`` while the guest does not have it.
    """

    vcpu: RunnableVcpu
    thread_id: int
    held: bool
    frame: FrameType | None
    spare: bool = False


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
        absent: Iterable[int] = (),
    ) -> None:
        """The guest does not have the vCPUs ``absent`` until each of them is brought."""
        self._on_exit = on_exit
        # Asked in a vCPU's thread about an exit that resets the machine, with the reason: whether
        # the vCPU is to wait until that is done. It has called ``park`` then.
        self.on_reset: Callable[[str], bool] = lambda _reason: False
        lock = threading.RLock()
        self._condition = threading.Condition(lock)
        self._arrival = threading.Condition(lock)  # only spare vCPUs wait for it
        # Only those who look after vCPUs wait for it. If each vCPU that pauses woke those that have
        # paused before, a pause would take time by the square of their number.
        self._standstill = threading.Condition(lock)
        self._absent = set(absent)
        self._spares: set[int] = set()  # those whose threads have left the guest
        self._state = _PAUSED
        self._ended = False
        self._confine: Callable[[int], None] | None = None
        self._unconfined = len(vcpus)  # how many threads have yet to confine themselves
        self._refusal: Exception | None = None  # what ``confine`` raised
        self._tids: dict[int, int] = {}  # thread ids of the kernel, by index of the vCPU
        self._parked: set[int] = set()  # the vCPUs that are paused
        self._runners = [
            VcpuRunner(vcpu, pio, mmio, hardware_virtualization=hardware_virtualization)
            for vcpu in vcpus
        ]
        self._threads = [
            threading.Thread(target=self._thread, args=(runner,), name=f"vcpu{runner.vcpu.index}")
            for runner in self._runners
        ]
        self._vcpus = {vcpu.index: vcpu for vcpu in vcpus}
        self._idents: dict[int, int] = {}  # thread ids of Python, by index of the vCPU

    def start(self, *, paused: bool = False, confine: Callable[[int], None] | None = None) -> None:
        """Start the threads. Do not fork afterwards: threads do not survive a fork.

        Args:
            paused: no vCPU enters the guest before ``resume``.
            confine: called in each thread before it runs the guest, with the index of the vCPU; it
                may raise.

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
            self._standstill.wait_for(lambda: not self._unconfined)
            if self._refusal is not None:
                raise self._refusal

    @property
    def count(self) -> int:
        """How many vCPUs the guest has."""
        with self._condition:
            return len(self._vcpus) - len(self._absent)

    @property
    def absent(self) -> frozenset[int]:
        """The vCPUs that the guest does not have."""
        with self._condition:
            return frozenset(self._absent)

    @property
    def threads(self) -> int:
        """How many threads there are, one for each vCPU that the guest has or may have later."""
        return len(self._threads)

    def bring(self, *indices: int) -> None:
        """Give the guest vCPUs; they wait for the guest to start them."""
        with self._condition:
            self._absent.difference_update(indices)
            self._arrival.notify_all()

    def take_away(self, index: int) -> None:
        """Take a vCPU out of the guest and switch it off; its thread waits until it is brought."""
        with self._condition:
            self._absent.add(index)
            if index in self._tids:
                self._kick(index)

    @property
    def thread_ids(self) -> dict[int, int]:
        """The kernel's thread id of each running vCPU, by index."""
        with self._condition:
            return dict(self._tids)

    @property
    def exits(self) -> dict[int, int]:
        """How often each vCPU that the guest has left it to be served here, by index."""
        with self._condition:
            absent = frozenset(self._absent)
        exits = {runner.vcpu.index: runner.exits for runner in self._runners}
        return {index: count for index, count in exits.items() if index not in absent}

    def look(self) -> tuple[VcpuLook, ...]:
        """Look at every vCPU without stopping any. Do not call it in a vCPU's thread."""
        with self._condition:
            tids, idents, parked = dict(self._tids), dict(self._idents), frozenset(self._parked)
            spares = frozenset(self._spares)
        frames = sys._current_frames()
        return tuple(
            VcpuLook(
                vcpu,
                tids.get(index, 0),
                index in parked,
                frames.get(idents.get(index, 0)),
                index in spares,
            )
            for index, vcpu in sorted(self._vcpus.items())
        )

    def pause(self) -> None:
        """Ask every vCPU to pause; ``wait_paused`` waits until they have."""
        with self._condition:
            if self._state in (_RUNNING, _PAUSED):
                self._state = _PAUSED
                self._kick(*self._tids)

    def park(self) -> None:
        """Ask every vCPU to pause when it leaves the guest the next time. For any thread.

        The vCPU whose thread calls this does not enter the guest before ``resume``.
        """
        with self._condition:
            if self._state == _RUNNING:
                self._state = _PAUSED
                for vcpu in self._vcpus.values():
                    vcpu.set_immediate_exit(enabled=True)

    def wait_paused(self, timeout_seconds: float) -> bool:
        """Wait until no vCPU is in the guest or in a device; return whether that is so.

        Return False on a timeout, or if another thread resumes or stops the VM meanwhile.
        """
        with self._condition:
            self._standstill.wait_for(
                lambda: self._state != _PAUSED or self._all_parked(), timeout_seconds
            )
            return self._state == _PAUSED and self._all_parked()

    def _all_parked(self) -> bool:
        return len(self._parked) + len(self._spares) >= len(self._tids)  # no vCPU is both

    def resume(self) -> None:
        """Let every paused vCPU go on."""
        with self._condition:
            if self._state == _PAUSED:
                self._state = _RUNNING
                self._condition.notify_all()
                self._standstill.notify_all()

    def stop(self, timeout_seconds: float) -> bool:
        """End every thread; return whether all of them ended in time.

        A thread that did not end is stuck in a device call, or in the kernel.
        """
        with self._condition:
            self._state = _STOPPING
            self._condition.notify_all()
            self._arrival.notify_all()
            self._standstill.notify_all()
            self._kick(*self._tids)
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _kick(self, *indices: int) -> None:
        """Make vCPUs leave the guest. The caller holds the lock, so thread ids stay valid."""
        for index in indices:
            if index not in self._parked:
                self._vcpus[index].set_immediate_exit(enabled=True)
                kick_thread(self._tids[index], KICK_SIGNAL)

    def _thread(self, runner: VcpuRunner) -> None:
        index = runner.vcpu.index
        signal.pthread_sigmask(signal.SIG_BLOCK, _OTHERS_SIGNALS)
        linux.set_process_name(f"vcpu{index}")  # Kata and libvirt look for this name
        if not self._enter(index):
            return
        try:
            reason = self._run(runner)
        except Exception as error:  # thread entry: a bug must end the VM, not leave it hanging
            log.exception(error, "vCPU %d: a bug in the monitor ends the VM", index)
            reason = VmExitReason(VmExit.CRASH, f"vCPU {index}: {type(error).__name__}: {error}")
        finally:
            with self._condition:
                del self._tids[index]
                del self._idents[index]
                self._parked.discard(index)
                self._spares.discard(index)
                self._tell_standstill()
        if reason is not None:
            self._report(index, reason)

    def _run(self, runner: VcpuRunner) -> VmExitReason | None:
        """Run the guest, again after each reset of the machine; see ``VcpuRunner.run``."""
        while True:
            reason = runner.run(self._gate)
            if reason is None or reason.kind != VmExit.RESET or not self.on_reset(reason.text):
                return reason

    def _enter(self, index: int) -> bool:
        """Confine and register this thread; return False if it could not be confined."""
        tid = threading.get_native_id()
        refusal: Exception | None = None
        try:
            if self._confine is not None:
                self._confine(index)
        except Exception as error:  # noqa: BLE001 - ``wait_confined`` raises it again
            refusal = error
        with self._condition:
            self._unconfined -= 1
            if refusal is None:
                self._tids[index] = tid
                self._idents[index] = threading.get_ident()
            else:
                self._refusal = refusal
            if not self._unconfined:
                self._standstill.notify_all()
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
        """Wait while the VM is paused or has no such vCPU; return whether to run the guest."""
        with self._condition:
            while self._state != _STOPPING:
                vcpu.set_immediate_exit(enabled=False)
                if vcpu.index in self._absent:
                    self._stay_away(vcpu)
                elif self._state == _PAUSED:
                    self._stay_paused(vcpu)
                else:
                    return True
            return False

    def _tell_standstill(self) -> None:
        if self._all_parked():
            self._standstill.notify_all()

    def _stay_paused(self, vcpu: RunnableVcpu) -> None:
        self._parked.add(vcpu.index)
        self._tell_standstill()
        self._condition.wait_for(lambda: self._state != _PAUSED)
        self._parked.discard(vcpu.index)
        vcpu.notify_paused()

    def _stay_away(self, vcpu: RunnableVcpu) -> None:
        """Wait until the guest has this vCPU. It has no state, as after the power came on."""
        index = vcpu.index
        vcpu.switch_off()
        linux.set_process_name(f"spare{index}")
        self._spares.add(index)
        self._tell_standstill()
        self._arrival.wait_for(lambda: index not in self._absent or self._state == _STOPPING)
        self._spares.discard(index)
        linux.set_process_name(f"vcpu{index}")
