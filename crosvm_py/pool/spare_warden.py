# SPDX-License-Identifier: BSD-3-Clause
"""The monitor's side of a spare warden: forked while the monitor waits, adopted by its run.

A run adopts it only if what it would fork now were the same in all that matters: the filters, the
limits and priorities of its processes, and the group that they are in.
"""

from __future__ import annotations

import os
import select

from crosvm_py.kinds.policies import load_spare_policies
from crosvm_py.pool.spare_protocol import (
    MAX_EXCEPTIONS,
    MAX_SOCKETS,
    MONITOR_CODEC,
    Adopt,
    LogException,
    SocketFile,
    Waiting,
)
from crosvm_py.vmm.warden_proxy import (
    END_SECONDS,
    WardenProcess,
    adopt_later,
    fork_warden,
    reap_later,
    reap_spare,
)
from crosvm_py.warden import protocol
from sys_util import linux, log, signal, socket
from sys_util.channel import Channel
from sys_util.errors import ChannelClosed, ProtocolError, raise_host_error
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crosvm_py.kinds.policies import RunPolicies
    from crosvm_py.vmm.preparation import Preparation
    from seccomp import Policy

# The most time for a spare to get ready; without one a run forks its warden itself.
_READY_SECONDS: Final = 60.0
_STDERR: Final = 2


class SpareWarden:
    """A warden that waits. Owns its process and two descriptors until a run adopts it."""

    def __init__(
        self, sock: socket.socket, pid: int, policies: RunPolicies, tighter: Policy
    ) -> None:
        """Take over ``sock``, the channel, and the child ``pid``, which has these filters."""
        self._pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._fd = sock.detach()
        self._policies = policies
        self._tighter = tighter

    def fds(self) -> list[int]:
        """Return the descriptors; this object keeps owning them."""
        return [fd for fd in (self._fd, self._pidfd) if fd >= 0]

    def move(self, moved: dict[int, int]) -> None:
        """Note that the descriptors have other numbers now."""
        self._fd, self._pidfd = (moved.get(fd, fd) for fd in (self._fd, self._pidfd))

    def is_ready(self) -> bool:
        """Wait until it waits; return false if it cannot."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll(_READY_SECONDS * 1000)
        sock = socket.socket(fileno=self._fd)
        try:
            received = Channel(sock, MONITOR_CODEC).receive()
        except (ChannelClosed, ProtocolError):
            return False
        finally:
            sock.detach()
        return received is not None and isinstance(received[0], Waiting)

    def suits(self, policies: RunPolicies | None) -> bool:
        """Return whether its filters are those of a run."""
        ours = self._policies
        if policies is None:
            return False
        is_tighter = policies.warden.name == self._tighter.name
        pairs = [
            (self._tighter if is_tighter else ours.warden, policies.warden),
            (ours.sealed, policies.sealed),
            (ours.forge, policies.forge),
            *((ours.devices.get(name), policy) for name, policy in policies.devices.items()),
        ]
        return all(
            one is not None and (one.name, one.bpf, other.recorder) == (other.name, other.bpf, None)
            for one, other in pairs
        )

    def adopt(self, order: Adopt, fds: list[int]) -> WardenProcess | None:
        """Have it serve this run; ``None`` if it has ended."""
        channel = Channel(socket.socket(fileno=self._fd), protocol.VMM_CODEC)
        try:
            channel.send(order, fds)
        except (ChannelClosed, ProtocolError):
            channel.close()
            self._reap()
            return None
        os.close(self._pidfd)
        return WardenProcess(channel, self._pid)

    def dismiss(self) -> None:
        """Let it end by itself: no run adopts it. ``reap_spare`` waits for that."""
        os.close(self._fd)
        self._fd = -1
        reap_later(self._reap)

    def _reap(self) -> None:
        """Wait for its end; kill it if it is stuck."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(END_SECONDS * 1000):
            linux.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._pidfd)


def start_spare_warden() -> SpareWarden | None:
    """Fork a warden for the one run of this process and wait until it waits.

    Return ``None`` if it cannot wait; then the run forks one, and tells the user what is wrong.

    Raises:
        VmmError: the host refuses it, or a policy is wrong.
    """
    policies, tighter = load_spare_policies()

    def work(sock: socket.socket, null_fd: int) -> None:
        from crosvm_py.pool.waiting_warden import be_spare_warden

        be_spare_warden(sock, null_fd, policies, tighter)

    sock, pid = fork_warden(work)
    try:
        spare = SpareWarden(sock, pid, policies, tighter)
    except OSError as error:  # nobody would hear of its end
        sock.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise_host_error("watch", f"the warden that waits (pid {pid})", error)
    if spare.is_ready():
        return spare
    spare.dismiss()
    reap_spare()
    return None


def keep_spare(spare: SpareWarden) -> None:
    """Let the run of this process adopt ``spare``.

    It is dismissed if it does not suit: where the VM gets a control group, the warden restores a
    terminal at the end, a filter is another, or log or sockets are too many to tell.
    """

    def adopt(
        prepared: Preparation,
        kinds: Iterable[str],
        syslog: tuple[str, int] | None,
        orders: socket.socket | None,
    ) -> WardenProcess | None:
        order = _order(prepared, kinds, syslog, has_orders=orders is not None)
        if order is None or not spare.suits(prepared.policies):
            spare.dismiss()
            return None
        fds = [_STDERR, *([] if orders is None else [orders.fileno()])]
        return spare.adopt(order, [*fds, *([] if syslog is None else [syslog[1]])])

    adopt_later(adopt)


def _order(
    prepared: Preparation, kinds: Iterable[str], syslog: tuple[str, int] | None, *, has_orders: bool
) -> Adopt | None:
    exceptions = log.current_filter().exceptions
    policies = prepared.policies
    if policies is None or prepared.cgroup is not None or prepared.serial.terminal is not None:
        return None
    if len(exceptions) > MAX_EXCEPTIONS or len(prepared.sockets) > MAX_SOCKETS:
        return None
    return Adopt(
        tuple(sorted(kinds)),
        policies.warden.name,
        tuple(policies.devices),
        tuple(
            SocketFile(os.fsencode(os.path.abspath(each.path)), each.dev, each.ino)
            for each in prepared.sockets
        ),
        log.current_filter().default,
        tuple(LogException(name, level) for name, level in exceptions.items()),
        None if syslog is None else syslog[0],
        has_orders,
    )
