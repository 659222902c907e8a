# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's side of its warden: how it is forked, and a handle on the process."""

from __future__ import annotations

import gc
import os
import select
from contextlib import suppress

from crosvm_py import bundle
from crosvm_py.end_signals import END_SIGNALS
from crosvm_py.exit_status import EXIT_BUG
from crosvm_py.leaving import end_fault_handler
from crosvm_py.warden import protocol
from sys_util import linux, signal
from sys_util.channel import Channel, socket_pair
from sys_util.crash import crash_report
from sys_util.errors import ChannelClosed, HostError, ProtocolError, Refusable, remedy_for
from sys_util.log import get_logger
from sys_util.modules import load_module
from sys_util.typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from crosvm_py.kinds.policies import RunPolicies
    from crosvm_py.vmm.preparation import Preparation
    from jail.cgroup import VmCgroup
    from sys_util import socket

log = get_logger("crosvm.warden")


# The most time for the warden to end all device processes and itself, after the channel is closed.
END_SECONDS: Final = 10.0

_REFUSABLE: Final = Refusable("start", "the warden, which makes the devices", forks=True)

# Takes what ``adopt_spare`` takes.
Adopter: TypeAlias = (
    "Callable[[Preparation, Iterable[str], tuple[str, int] | None, socket.socket | None],"
    " WardenProcess | None]"
)

# What both the vmm and the warden import: before the fork, so that it is in memory once.
_SHARED: Final = (
    *("crosvm_py.device_process.protocol", "devices.virtio.backend", "devices.virtio.features"),
    *("devices.virtio.saved_state", "sys_util.event_loop", "sys_util.shared_page"),
)

_STDERR: Final = 2
_STDIO: Final = frozenset({0, 1, _STDERR})


class WardenProcess:
    """The vmm's handle on its warden."""

    def __init__(self, channel: Channel, pid: int) -> None:
        self.channel = channel
        self.pid = pid
        # Opened now: the vmm's filter denies pidfd_open later.
        self.pidfd = os.pidfd_open(pid)

    def end(self) -> None:
        """Close the channel and wait for the warden to end by itself; a stuck one is killed."""
        self.channel.close()
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if not poll.poll(END_SECONDS * 1000):
            log.error("warden (pid %d): does not end, killed", self.pid)
            linux.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)


# In a monitor of the pool: what has its run adopt a spare warden, and what reaps one that did not
# suit. Only such a process imports that.
_adopters: list[Adopter] = []
_reapers: list[Callable[[], None]] = []


def adopt_later(adopter: Adopter) -> None:
    """Have ``adopt_spare`` call this, once. It returns ``None`` if the warden does not suit."""
    _adopters.append(adopter)


def reap_later(reaper: Callable[[], None]) -> None:
    """Have ``reap_spare`` call this, once."""
    _reapers.append(reaper)


def adopt_spare(
    prepared: Preparation,
    kinds: Iterable[str],
    syslog: tuple[str, int] | None,
    orders: socket.socket | None,
) -> WardenProcess | None:
    """Return a warden that waited for the run of this process, and serves it now, if there is one.

    Args:
        prepared: what the run has opened.
        kinds: the kinds of its devices.
        syslog: what its lines for syslog begin with, and the pipe for them.
        orders: the warden's end of the channel from the opener; the caller closes it.
    """
    return _adopters.pop()(prepared, kinds, syslog, orders) if _adopters else None


def reap_spare() -> None:
    """Reap a spare warden that ``adopt_spare`` has dismissed."""
    while _reapers:
        _reapers.pop()()


def start_warden(
    policies: RunPolicies | None,
    kinds: Iterable[str],
    when_vmm_is_gone: Callable[[], None],
    keep_fds: Iterable[int],
    cgroup: VmCgroup | None = None,
    orders: socket.socket | None = None,
) -> WardenProcess:
    """Fork the warden; the caller has one thread and holds no guest memory yet.

    Args:
        policies: the compiled policies of the run; ``None`` for ``--disable-sandbox``.
        kinds: the kinds of device that the run needs; the warden imports their modules.
        when_vmm_is_gone: clean-up that the warden runs after the vmm has ended.
        keep_fds: descriptors that the clean-up needs; the warden closes all others.
        cgroup: the VM's group; the warden removes it at the end.
        orders: the warden's end of the channel from the opener, which the caller closes; ``None``
            if no device can come while the guest runs.

    Raises:
        HostError: the host refuses to make the process.
    """
    if cgroup is not None:
        keep_fds = (*keep_fds, cgroup.lock_fd)
    if orders is not None:
        keep_fds = (*keep_fds, orders.fileno())

    def work(sock: socket.socket, null_fd: int) -> None:
        # Imported here, so that the vmm need not load it and imports its own modules meanwhile.
        from crosvm_py.warden.start import be_warden

        be_warden(sock, null_fd, policies, kinds, cgroup, orders)
        if cgroup is not None:
            cgroup.remove()
        when_vmm_is_gone()

    ours, pid = fork_warden(work, keep_fds)
    if cgroup is not None:
        cgroup.let_go()
    try:
        with _REFUSABLE:
            return WardenProcess(Channel(ours, protocol.VMM_CODEC), pid)
    except HostError:
        ours.close()  # the warden sees that and ends
        os.waitpid(pid, 0)
        raise


def fork_warden(
    work: Callable[[socket.socket, int], None], keep_fds: Iterable[int] = ()
) -> tuple[socket.socket, int]:
    """Fork a process that does ``work`` and ends; return our end of its channel, and its pid.

    ``work`` gets the channel's other end and /dev/null. Other descriptors are closed but
    ``keep_fds`` and stderr. The signals that end a VM are ignored there.

    Raises:
        HostError: the host refuses it.
    """
    for name in _SHARED:
        load_module(name)
    with _REFUSABLE:
        ours, theirs = socket_pair()
    gc.freeze()  # so that the garbage collector does not write to pages shared after the fork
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    with _REFUSABLE:
        pid = os.fork()
    if pid == 0:
        _be_warden(theirs, work, keep_fds)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    return ours, pid


def _be_warden(
    sock: socket.socket, work: Callable[[socket.socket, int], None], keep_fds: Iterable[int]
) -> NoReturn:
    status = EXIT_BUG
    try:
        # A terminal or service manager signals the whole process group. Only the vmm acts on that;
        # it then ends its children by closing their channels.
        for signum in END_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
        end_fault_handler()
        work(sock, _keep_only({_STDERR, sock.fileno(), *keep_fds, *bundle.used_fds()}))
        status = 0
    except OSError as error:
        reason = f"{error.strerror}{remedy_for(error)}"
        with suppress(ChannelClosed, ProtocolError):  # the vmm may have ended already
            Channel(sock, protocol.WARDEN_CODEC).send(protocol.CannotStart(reason))
    except Exception as error:  # noqa: BLE001 - process entry: report every bug
        log.error("%s", crash_report(error))
    finally:
        os._exit(status)


def _keep_only(keep: set[int]) -> int:
    """Close every other descriptor, open /dev/null as the standard ones, and return it."""
    linux.close_all_fds_except(keep)
    null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in _STDIO - keep:
        os.dup2(null_fd, fd)
    return null_fd
