# SPDX-License-Identifier: BSD-3-Clause
"""The opener: it opens what a client names for a new device, and orders the device of the warden.

The control process forks it, which reads what clients send, and it has its user's files, which the
control process has not. It takes typed requests from that process alone. It reads nothing of
what it opens but the size and, to warn, the first bytes of an image. What it opens goes to the
warden, with the order, through a channel that only this process and the keeper have an end of.

Each request is carried out by a child of its own, a *hand*, since an open(2) can wait for ever
where a file system hangs. It has the opener's filter, and ends with its request.
"""

from __future__ import annotations

import gc
import os

from crosvm_py.exit_status import EXIT_BUG
from crosvm_py.opener.protocol import (
    OPENER_CODEC,
    Made,
    Make,
    NotOpened,
    Open,
    Restrict,
    Restricted,
)
from crosvm_py.opener.rules import OPTION, is_refusal, make_rules
from crosvm_py.requests.protocol import MAX_REASON_CHARS
from crosvm_py.warden import protocol as warden_protocol
from jail.steps import DieWithParent, NoNewPrivileges
from sys_util import landlock, linux, log, socket
from sys_util.channel import Channel, socket_pair
from sys_util.child_log import CALL_DENIED_HEAD, log_through
from sys_util.crash import crash_report
from sys_util.errors import ChannelClosed, ProtocolError, VmmError, describe, raise_host_error
from sys_util.event_loop import EventLoop
from sys_util.modules import load_module
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import NoReturn

    from crosvm_py.kinds.order import DeviceOrder
    from seccomp import Policy

_log = log.get_logger("crosvm.opener")

# What the code that opens things imports and is not Python: under the filter no code can be mapped.
_NATIVE: Final = ("fcntl", "mmap", "struct", "sys_util.linux")
_STDIO: Final = frozenset({0, 1, 2})

# Where something is already, even a link that leads nowhere, nothing is made.
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC

# The most hands at a time. One that hangs in a system call cannot be ended.
MAX_HANDS: Final = 8


def start_opener(
    orders: int, policy: Policy | None, *, rules: int = -1, sibling: bool = True
) -> socket.socket:
    """Fork the opener from the control process, which has one thread and no filter yet.

    It becomes a child of the keeper, which ends it when the control process has ended: that one may
    not signal others (Landlock), and so the kernel would not kill the opener for its death.

    Args:
        orders: the channel to the warden. The caller keeps it, and should close it.
        policy: the compiled policy of an opener; ``None`` for ``--disable-sandbox``.
        rules: a Landlock ruleset for it, which stays the caller's; -1 for none yet.
        sibling: make it a child of the caller's parent.

    Returns:
        The control process's end of the channel to the opener, which ends when that is closed.

    Raises:
        OSError: the host makes no process.
    """
    ours, theirs = socket_pair()
    if (linux.clone(linux.CLONE_PARENT) if sibling else os.fork()) == 0:
        _be_opener(theirs, orders, policy, rules)
    theirs.close()
    return ours


def _be_opener(sock: socket.socket, orders: int, policy: Policy | None, rules: int) -> NoReturn:
    status = EXIT_BUG
    try:
        linux.set_process_name("crosvm-opener")
        linux.close_all_fds_except({sock.fileno(), orders, *_STDIO, *({rules} - {-1})})
        channel = Channel(sock, OPENER_CODEC)
        log_through(channel)
        for name in _NATIVE:
            load_module(name)
        opener = _Opener(channel, Channel(_socket(orders), warden_protocol.OPENER_CODEC))
        _confine(channel, policy, rules)
        opener.is_restricted = rules >= 0
        opener.run()
        status = 0
    except Exception as error:  # noqa: BLE001 - process entry: report every bug
        _log.error("%s", crash_report(error))
    finally:
        os._exit(status)


def _socket(fd: int) -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fd)


def _confine(channel: Channel, policy: Policy | None, rules: int) -> None:
    from jail.control import control_jail

    DieWithParent().apply()
    NoNewPrivileges().apply()
    if rules >= 0:
        landlock.restrict(rules)
        os.close(rules)
    gc.freeze()
    gc.enable()
    if policy is None:
        return
    jail = control_jail(policy, opens=True)
    jail.enter()
    linux.report_denied_calls(channel.fileno(), CALL_DENIED_HEAD)
    jail.load_filter()


class _Opener:
    """Serves the control process until it closes the channel."""

    def __init__(self, control: Channel, warden: Channel) -> None:
        self.is_restricted = False
        self._control = control
        self._warden = warden
        self._hands = 0
        self._loop = EventLoop()
        self._loop.add(control.fileno(), lambda _events: self._on_request())
        self._loop.add(warden.fileno(), lambda _events: self._on_answer())

    def run(self) -> None:
        self._loop.run()

    def _on_request(self) -> None:
        try:
            received = self._control.receive()
        except (ChannelClosed, ProtocolError):
            self._loop.stop()
            return
        if received is None:
            return
        request, fds = received
        if isinstance(request, Restrict):
            self._restrict(request)
        if isinstance(request, Open | Make):
            try:
                self._start_hand(request, fds)
            except OSError as error:
                self._tell(_refusal(request, f"{error.strerror}"))
        for fd in fds:
            os.close(fd)

    def _start_hand(self, request: Open | Make, fds: list[int]) -> None:
        """Fork a process for one request.

        Raises:
            OSError: the host makes no process.
        """
        if self._hands >= MAX_HANDS:
            reason = f"the opener waits for {MAX_HANDS} files of file systems that hang"
            self._tell(_refusal(request, reason))
            return
        ended, alive = os.pipe2(os.O_CLOEXEC)
        try:
            pid = linux.clone(0)
        except OSError:
            os.close(ended)
            os.close(alive)
            raise
        if pid == 0:
            self._be_hand(request, fds)
        os.close(alive)
        self._hands += 1
        self._loop.add(ended, lambda _events: self._on_hand_ended(pid, ended, request))

    def _be_hand(self, request: Open | Make, fds: list[int]) -> NoReturn:
        status = EXIT_BUG
        try:
            DieWithParent().apply()
            judged("the request", self._carry_out, request, fds)
            status = 0
        except (VmmError, OSError) as error:
            reason = describe(error) if isinstance(error, VmmError) else f"{error.strerror}"
            if self.is_restricted and is_refusal(error):
                reason += f" (no {OPTION} lets it be opened)"
            self._tell(_refusal(request, reason))
            status = 0
        finally:
            os._exit(status)

    def _on_hand_ended(self, pid: int, ended: int, request: Open | Make) -> None:
        self._loop.remove(ended)
        os.close(ended)
        self._hands -= 1
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            self._tell(_refusal(request, f"the process that opens it {how}"))

    def _restrict(self, request: Restrict) -> None:
        """Keep to the rules from now on; those of a second request come on top."""
        reason = ""
        try:
            rules = make_rules(request.rules)
            landlock.restrict(rules)
            os.close(rules)
            self.is_restricted = True
        except (VmmError, OSError) as error:
            reason = describe(error) if isinstance(error, VmmError) else f"{error.strerror}"
        self._tell(Restricted(reason[:MAX_REASON_CHARS]))

    def _carry_out(self, request: Open | Make, fds: list[int]) -> None:
        if isinstance(request, Open):
            self._order(request, fds)
            return
        try:
            fd = os.open(request.path, _NEW_FILE, 0o600)
        except OSError as error:
            raise_host_error("make", os.fsdecode(request.path), error)
        self._tell(Made(request.number, ""), (fd,))

    def _order(self, request: Open, fds: list[int]) -> None:
        from crosvm_py.kinds.later import open_later

        order = open_later(request.kind, request.spec, request.path, cpus=request.cpus, fds=fds)
        try:
            self._warden.send(_add(request, order), order.fds)
        except (ChannelClosed, ProtocolError) as error:
            reason = "it has ended" if isinstance(error, ChannelClosed) else f"{error}"
            raise VmmError(f"the warden takes no orders: {reason}") from None
        finally:
            for fd in order.fds:
                os.close(fd)

    def _on_answer(self) -> None:
        """Pass a refusal of the warden on; that of an order of an earlier opener is ignored."""
        try:
            received = self._warden.receive()
        except (ChannelClosed, ProtocolError):
            self._loop.remove(self._warden.fileno())
            return
        if received is None:
            return
        answer, fds = received
        for fd in fds:
            os.close(fd)
        if isinstance(answer, warden_protocol.NotAdded):
            self._tell(NotOpened(answer.place, answer.reason[:MAX_REASON_CHARS]))

    def _tell(self, answer: NotOpened | Made | Restricted, fds: tuple[int, ...] = ()) -> None:
        try:
            self._control.send(answer, fds)
        except (ChannelClosed, ProtocolError):
            return  # the place is given up when its time is over


def _refusal(request: Open | Make, reason: str) -> NotOpened | Made:
    reason = reason[:MAX_REASON_CHARS]
    if isinstance(request, Open):
        return NotOpened(request.place, reason)
    return Made(request.number, reason)


def _add(request: Open, order: DeviceOrder) -> warden_protocol.Add:
    return warden_protocol.Add(
        request.place,
        request.name,
        order.kind,
        order.spec,
        order.max_file_bytes,
        order.connects,
        order.reopened,
    )
