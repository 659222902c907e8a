# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's side of the keeper of its control process: how it is forked, and a handle on it."""

from __future__ import annotations

import os
import select

from crosvm_py.control.protocol import FROM_KEEPER_CODEC
from crosvm_py.end_signals import END_SIGNALS
from crosvm_py.exit_status import EXIT_BUG
from crosvm_py.leaving import end_fault_handler
from sys_util import linux, signal
from sys_util.channel import Channel, socket_pair
from sys_util.crash import crash_report
from sys_util.errors import HostError, Refusable
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from crosvm_py.control.protocol import ControlFds
    from seccomp import Policy
    from sys_util import socket

log = get_logger("crosvm.control")

# The most time for keeper and control process to end, a little more than the keeper's own limit.
END_SECONDS: Final = 4.0

_REFUSABLE: Final = Refusable("start", "the keeper of the control process", forks=True)
_STDIO: Final = frozenset({0, 1, 2})


class KeeperProcess:
    """The vmm's handle on the keeper. Owns the channel and the pidfd."""

    def __init__(self, channel: Channel, pid: int) -> None:
        self.channel = channel
        self.pid = pid
        # Opened now: the vmm's filter denies pidfd_open later.
        self._pidfd = os.pidfd_open(pid)

    def end(self) -> None:
        """Close the channel and wait for the keeper to end by itself; a stuck one is killed."""
        self.channel.close()
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(END_SECONDS * 1000):
            log.error("keeper of the control process (pid %d): does not end, killed", self.pid)
            linux.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._pidfd)


def start_keeper(
    fds: ControlFds,
    policies: tuple[Policy | None, Policy | None],
    keep_fds: Iterable[int],
    describe: Callable[[], None] | None = None,
    when_vmm_is_gone: Callable[[], None] | None = None,
) -> KeeperProcess:
    """Fork the keeper, which starts the control process; the caller has one thread.

    Args:
        fds: what a control process serves; the caller keeps them and closes them.
        policies: the compiled policies of a control process and of its opener; ``None`` for
            ``--disable-sandbox``.
        keep_fds: descriptors that the log needs; the keeper closes all others.
        describe: writes the configuration into ``fds.store``, in a process of its own, before the
            first control process starts. It imports what no other process of a run needs.
        when_vmm_is_gone: clean-up of the keeper, which ends after the vmm, if there may be no
            warden to do it.

    Raises:
        HostError: the host refuses to make the process.
    """
    with _REFUSABLE:
        ours, theirs = socket_pair()
        pid = os.fork()
    if pid == 0:
        _be_keeper(theirs, fds, policies, keep_fds, describe, when_vmm_is_gone)
    theirs.close()
    try:
        with _REFUSABLE:
            return KeeperProcess(Channel(ours, FROM_KEEPER_CODEC), pid)
    except HostError:
        ours.close()  # the keeper sees that and ends
        os.waitpid(pid, 0)
        raise


def _be_keeper(
    sock: socket.socket,
    fds: ControlFds,
    policies: tuple[Policy | None, Policy | None],
    keep_fds: Iterable[int],
    describe: Callable[[], None] | None,
    when_vmm_is_gone: Callable[[], None] | None,
) -> NoReturn:
    status = EXIT_BUG
    try:
        for signum in END_SIGNALS:  # they end the vmm, which then ends the others
            signal.signal(signum, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
        end_fault_handler()
        linux.set_process_name("crosvm-keeper")
        linux.close_all_fds_except({sock.fileno(), *fds.used(), *keep_fds, *_STDIO})
        from crosvm_py.control.keeper import Keeper
        from jail.control import confine_keeper

        filters = [-1 if policy is None else _store(policy) for policy in policies]
        if describe is not None:
            _in_a_child(describe)
        if policies[0] is not None:
            confine_keeper()
        fds = fds._replace(policy=filters[0], opener_policy=filters[1])
        Keeper(Channel(sock, FROM_KEEPER_CODEC), fds).keep()
        if when_vmm_is_gone is not None:
            when_vmm_is_gone()
        status = 0
    except Exception as error:  # noqa: BLE001 - process entry: report every bug
        log.error("%s", crash_report(error))
    finally:
        os._exit(status)


def _in_a_child(act: Callable[[], None]) -> None:
    """Act in a process that ends then, with all that it has imported."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        act()
    except Exception as error:  # noqa: BLE001 - process entry: report every bug
        log.error("%s", crash_report(error))
    finally:
        os._exit(0)


def _store(policy: Policy) -> int:
    """Return a memfd with the filter, for every process that is to have it."""
    fd = os.memfd_create("crosvm_control_policy", os.MFD_CLOEXEC)
    os.write(fd, policy.bpf)
    return fd
