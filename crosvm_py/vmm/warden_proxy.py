# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's side of its warden: the fork, and a handle on the process that comes of it."""

from __future__ import annotations

import gc
import os
import select
import signal
from contextlib import suppress

from crosvm_py.end_signals import END_SIGNALS
from crosvm_py.exit_status import EXIT_BUG
from crosvm_py.leaving import end_fault_handler
from crosvm_py.warden import protocol
from sys_util import linux
from sys_util.channel import Channel, socket_pair
from sys_util.crash import crash_report
from sys_util.errors import ChannelClosed, HostError, ProtocolError, Refusable, remedy_for
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from crosvm_py.kinds.policies import RunPolicies
    from jail.cgroup import VmCgroup

log = get_logger("crosvm.warden")


# How long the warden may take to end everything when the vmm closes the channel.
END_SECONDS: Final = 10.0

_REFUSABLE: Final = Refusable("start", "the warden, which makes the devices", forks=True)

_STDERR: Final = 2
_STDIO: Final = frozenset({0, 1, _STDERR})


class WardenProcess:
    """The vmm's handle on its warden."""

    def __init__(self, channel: Channel, pid: int) -> None:
        self.channel = channel
        self.pid = pid
        # Taken while the vmm may still make descriptors: its filter knows no way to name a process.
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


def start_warden(
    policies: RunPolicies | None,
    kinds: Iterable[str],
    when_vmm_is_gone: Callable[[], None],
    keep_fds: Iterable[int],
    cgroup: VmCgroup | None = None,
) -> WardenProcess:
    """Fork the warden; the caller has one thread and nothing of the guest yet.

    Args:
        policies: the compiled ones of the run; ``None`` for ``--disable-sandbox``.
        kinds: the kinds of device that will be asked for, imported ahead.
        when_vmm_is_gone: the tidying that outlives the vmm; runs in the warden.
        keep_fds: what the tidying needs; every other descriptor of the vmm is closed.
        cgroup: the VM's, which becomes the warden's to remove.

    Raises:
        HostError: the host does not let us.
    """
    with _REFUSABLE:
        ours, theirs = socket_pair()
    gc.freeze()  # so that no collection writes to pages which both processes have
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    with _REFUSABLE:
        pid = os.fork()
    if pid == 0:
        _be_warden(theirs, policies, kinds, when_vmm_is_gone, keep_fds, cgroup)
    if cgroup is not None:
        cgroup.let_go()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    try:
        with _REFUSABLE:
            return WardenProcess(Channel(ours, protocol.VMM_CODEC), pid)
    except HostError:
        ours.close()  # at which it ends
        os.waitpid(pid, 0)
        raise


def _be_warden(
    sock: socket.socket,
    policies: RunPolicies | None,
    kinds: Iterable[str],
    when_vmm_is_gone: Callable[[], None],
    keep_fds: Iterable[int],
    cgroup: VmCgroup | None,
) -> NoReturn:
    status = EXIT_BUG
    try:
        # What a terminal or a service manager sends to the whole group is for the vmm alone, which
        # tells its children by the channel.
        for signum in END_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
        end_fault_handler()
        if cgroup is not None:
            keep_fds = (*keep_fds, cgroup.lock_fd)
        null_fd = _keep_only({_STDERR, sock.fileno(), *keep_fds})
        # Imported here, while the vmm imports what it alone needs.
        from crosvm_py.warden.warden import be_warden

        be_warden(sock, null_fd, policies, kinds, cgroup)
        if cgroup is not None:
            cgroup.remove()
        when_vmm_is_gone()
        status = 0
    except OSError as error:
        reason = f"{error.strerror}{remedy_for(error)}"
        with suppress(ChannelClosed, ProtocolError):  # a vmm that has gone has its own reason
            Channel(sock, protocol.WARDEN_CODEC).send(protocol.CannotStart(reason))
    except Exception as error:  # noqa: BLE001 - the entry of the process: a bug ends here, named
        log.error("%s", crash_report(error))
    finally:
        os._exit(status)


def _keep_only(keep: set[int]) -> int:
    """Close every other descriptor; return /dev/null, which the standard ones become."""
    linux.close_all_fds_except(keep)
    null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in _STDIO - keep:
        os.dup2(null_fd, fd)
    return null_fd
