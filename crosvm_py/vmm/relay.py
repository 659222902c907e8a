# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's side of the relay, a process that sends lines as datagrams on behalf of the vmm."""

from __future__ import annotations

import os
import select

from crosvm_py import bundle
from crosvm_py.exit_status import EXIT_BUG, describe_end
from crosvm_py.leaving import end_fault_handler
from seccomp import load_policy
from sys_util import linux, signal
from sys_util.errors import raise_host_error
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from crosvm_py.relay.outlet import Outlet
    from seccomp import Policy

log = get_logger("crosvm.relay")

POLICY_NAME: Final = "line_relay"

# The most time that the relay may take to end, a little more than it waits for its receivers.
END_SECONDS: Final = 2.0


class RelayProcess:
    """The vmm's handle on its relay."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        # Opened now: the vmm's filter denies pidfd_open later.
        self._pidfd = linux.watch_child(pid)

    def end(self) -> None:
        """Wait for its end; it ends by itself once all writers of its pipes have closed them."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(END_SECONDS * 1000):
            linux.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        _, wait_status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        if wait_status:
            log.error("the relay of lines (pid %d): %s", self.pid, describe_end(wait_status))


def start_relay(outlets: Sequence[Outlet], *, sandbox: bool) -> RelayProcess:
    """Fork the relay; the caller has one thread.

    The outlets move to the relay and are closed here.

    Raises:
        HostError: the host refuses to fork.
        PolicyError: the policy cannot be used.
    """
    try:
        policy = load_policy(POLICY_NAME) if sandbox else None
        pid = os.fork()
        if pid == 0:
            _be_relay(outlets, policy)
        return RelayProcess(pid)
    except OSError as error:
        raise_host_error("start", "the relay of lines", error)
    finally:
        for outlet in outlets:
            outlet.close()


def _be_relay(outlets: Sequence[Outlet], policy: Policy | None) -> NoReturn:
    status = EXIT_BUG
    try:
        # A Ctrl-C of the terminal must not end the relay: it has to send the vmm's last lines.
        os.setpgid(0, 0)
        end_fault_handler()
        from crosvm_py.relay.process import run_relay
        from jail.plan import relay_jail

        bundle.drop()
        linux.set_process_name("crosvm-relay")

        def confine(keep_fds: set[int]) -> None:
            linux.close_all_fds_except(keep_fds)
            if policy is not None:
                jail = relay_jail(policy)
                jail.enter()
                jail.load_filter()

        run_relay(outlets, confine)
        status = 0
    finally:
        os._exit(status)
