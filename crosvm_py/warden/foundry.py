# SPDX-License-Identifier: BSD-3-Clause
"""How the warden uses moulds: it has them made, gives each an order, and takes the result.

A mould takes some 30 ms to start. So once a device has crashed, one mould is kept ready, the spare;
there is never more than one. Nothing here blocks: a mould has a deadline for each of its two steps,
to get ready and to make its process. No more of them get ready at one time than there are
processors; others wait.
"""

from __future__ import annotations

import os
from collections import deque

from crosvm_py.warden.child import let_go
from crosvm_py.warden.forge_protocol import (
    FROM_MOULD_CODEC,
    Begun,
    Born,
    CallDenied,
    Cast,
    Failed,
    Load,
    Loaded,
)
from crosvm_py.warden.forge_proxy import Forge, Mould, describe_denied, describe_end, reason_for
from crosvm_py.warden.start_queue import StartQueue
from sys_util.channel import Channel, socket_pair
from sys_util.errors import ChannelClosed, HostError, ProtocolError, VmmError, describe
from sys_util.log import get_logger
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING, Final
from sys_util.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from crosvm_py.warden.forge import ForgeProcess
    from crosvm_py.warden.forge_proxy import Casting
    from sys_util.event_loop import EventLoop
    from sys_util.wire import Message

log = get_logger("crosvm.warden")

# The most time for a mould to get ready, and again to make its process. An emulated processor needs
# half of it. After each mould that was late the next one gets twice as much, up to 200 s: a host so
# slow must not start one after the other in vain.
MOULD_SECONDS: Final = 25.0
_MOST_DOUBLINGS: Final = 3
# How long after a crash the spare is begun; not at once, so that the restart gets the processor.
SPARE_SECONDS: Final = 0.1
# How long after a mould failed we look for a process that it may have left.
_SWEEP_SECONDS: Final = 1.0

_PREFIX: Final = "no new process: "


class Foundry:
    """Every mould of one warden, and its forge."""

    def __init__(
        self,
        loop: EventLoop,
        forge: ForgeProcess,
        knows: Callable[[int], bool],
        kinds: Iterable[str] = (),
    ) -> None:
        """Serve in ``loop``.

        ``knows`` tells whether a pid is the warden's device or broker. A mould can make devices of
        the ``kinds``, to which ``load_also`` adds.
        """
        self._first_kinds = self._kinds = frozenset(kinds)
        self._loop = loop
        self._knows = knows
        self._moulds: list[Mould] = []
        self._starts = StartQueue(len(os.sched_getaffinity(0)), self._execute)
        self._late = 0  # how many moulds in a row were late
        self._spare: Mould | None = None
        self._is_spare_due = False
        self._renewals: deque[Callable[[str], None]] = deque()
        self._forge = Forge(loop, forge, self._on_forge_end)
        self.on_mould_gone: Callable[[], None] = lambda: None

    def load_also(self, kind: str) -> None:
        """Have moulds that are made from now on import this kind of device as well."""
        if kind in self._kinds:
            return
        self._kinds |= {kind}
        spare, self._spare = self._spare, None
        if spare is not None:  # it would not know the new kind
            self._dismiss(spare)

    def holds(self, device_id: int) -> bool:
        """Return whether a mould still has descriptors of this device."""
        return any(mould.holds == device_id for mould in self._moulds)

    def cast(self, casting: Casting) -> None:
        """Have a process made; ``casting.then`` is called later, or at once on failure."""
        mould, self._spare = self._spare, None
        try:
            mould = mould or self._begin()
        except (VmmError, OSError) as error:
            casting.close()
            casting.then(0, -1, reason_for(error))
            return
        mould.casting = casting
        if mould.is_loaded:
            self._send_order(mould, casting)

    def keep_spare(self) -> None:
        """Make a spare soon, since a device has crashed and may do so again."""
        if not self._is_spare_due:
            self._is_spare_due = True
            self._loop.call_later(SPARE_SECONDS, self._on_spare_due)

    def hurry_spare(self) -> None:
        """Begin a spare at once, since a second process will be needed after the one ordered."""
        self._make_spare()

    def renew(self, then: Callable[[str], None]) -> None:
        """Load the device code as it is installed now, into a mould that becomes the spare.

        ``then`` is called with "" when that is done, or with the reason why the code cannot be
        loaded; then the spare stays as it was.
        """
        self._renewals.append(then)
        if len(self._renewals) == 1:
            self._renew_next()

    def end(self) -> None:
        """Kill the forge and the moulds. The caller reaps all children and ends its loop."""
        for mould in self._moulds:
            mould.kill()
            mould.close_go()
            if mould.is_open:
                mould.channel.close()
        self._forge.kill()

    # The spare.

    def _on_spare_due(self) -> None:
        self._is_spare_due = False
        self._make_spare()

    def _make_spare(self) -> None:
        if self._spare is None:
            try:
                self._spare = self._begin()
            except (VmmError, OSError) as error:
                log.debug("no spare is kept: %s", reason_for(error))

    def _renew_next(self) -> None:
        try:
            self._begin().renewal = self._on_renewed
        except (VmmError, OSError) as error:
            self._on_renewed(reason_for(error))

    def _on_renewed(self, reason: str) -> None:
        self._renewals.popleft()(reason)
        if self._renewals:
            self._renew_next()

    def _replace_spare(self, mould: Mould) -> None:
        old, self._spare = self._spare, mould
        if old is not None:
            self._dismiss(old)

    def _dismiss(self, mould: Mould) -> None:
        mould.is_unwanted = True
        if mould.is_loaded:
            self._close(mould)

    # Messages from moulds.

    def _begin(self) -> Mould:
        """Ask the forge for a mould, at once or when others have started.

        Raises:
            VmmError, OSError: the forge has ended, or the host makes no socket.
        """
        if self._forge.end:
            raise VmmError(f"{_PREFIX}the forge {self._forge.end}")
        ours, theirs = socket_pair()
        mould = Mould(Channel(ours, FROM_MOULD_CODEC), theirs, self._kinds)
        mould.channel.send(Load(tuple(sorted(self._kinds - self._first_kinds))))
        self._moulds.append(mould)
        self._loop.add(ours.fileno(), lambda _events: self._on_message(mould))
        self._starts.add(mould)
        return mould

    def _execute(self, mould: Mould) -> None:
        try:
            with mould.its_end as sock:
                self._forge.execute(sock.fileno())
        except VmmError as error:
            reason = describe(error).removeprefix(_PREFIX)
            # Later, when it is known what the mould is for.
            self._loop.call_later(0, lambda: self._give_up(mould, reason))
        else:
            self._limit(mould, "its interpreter is not ready")

    def _limit(self, mould: Mould, late: str) -> None:
        """Set the deadline of a mould's next step; ``late`` says what it has then not done."""
        mould.stop_waiting()
        seconds = MOULD_SECONDS * (1 << self._late)

        def give_up() -> None:
            self._late = min(self._late + 1, _MOST_DOUBLINGS)
            self._give_up(mould, f"{late} after {seconds:.0f} s")

        mould.timer = self._loop.call_later(seconds, give_up)

    def _on_message(self, mould: Mould) -> None:
        self._receive(mould)

    def _receive(self, mould: Mould) -> bool:
        """Receive a mould's next message; return whether there may be more messages."""
        try:
            received = mould.channel.receive()
            if received is None:
                return False
            message, fds = received
            for fd in fds:  # no message has descriptors
                os.close(fd)
            judged(f"its {type(message).__name__}", self._take, mould, message)
        except ChannelClosed:
            self._close(mould)
            if mould.pidfd < 0:
                self._forget(mould)
            else:
                mould.kill()  # if it has not ended yet
        except VmmError as error:
            self._give_up(mould, describe(error))
        return mould.is_open

    def _take(self, mould: Mould, message: Message) -> None:
        match message:
            case Begun(pid):
                if mould.pid:
                    raise ProtocolError("a mould that begins twice")
                self._check_child(pid)
                mould.pidfd = os.pidfd_open(pid)
                mould.pid = pid
                self._loop.add(mould.pidfd, lambda _events: self._reap(mould))
            case Loaded():
                self._on_loaded(mould)
            case Failed(reason):
                mould.reason = reason
            case CallDenied(number):
                mould.reason = f"its interpreter {describe_denied(number)}"
            case Born(pid):
                self._on_born(mould, pid)

    def _on_loaded(self, mould: Mould) -> None:
        if not mould.pid or mould.is_loaded:
            raise ProtocolError("a mould that is ready at the wrong time")
        mould.is_loaded = True
        mould.stop_waiting()
        self._late = 0
        self._starts.leave(mould)
        renewed, mould.renewal = mould.renewal, None
        if mould.is_unwanted:
            self._close(mould)
        elif mould.casting is not None:
            self._send_order(mould, mould.casting)
        elif renewed is not None:
            self._replace_spare(mould)
            renewed("")

    def _send_order(self, mould: Mould, casting: Casting) -> None:
        """Send a mould its order."""
        self._limit(mould, "its interpreter makes no process")
        go_read = -1
        try:
            go_read, mould.go_fd = os.pipe2(os.O_CLOEXEC)
            inside = casting.ids(0).inside() if casting.ids else (None, None)
            order = encode(casting.order)
            cast = Cast(order, casting.as_broker, casting.in_cgroup, *inside)
            mould.holds = casting.order.device_id
            mould.channel.send(cast, [go_read, *casting.fds])
        except ChannelClosed:
            pass  # ``_receive`` reads the reason next
        except (VmmError, OSError) as error:
            self._give_up(mould, reason_for(error))
        finally:
            if go_read >= 0:
                os.close(go_read)
            casting.close()

    def _on_born(self, mould: Mould, pid: int) -> None:
        casting = mould.casting
        if casting is None or mould.go_fd < 0:
            raise ProtocolError("a process that nobody ordered")
        self._check_child(pid)
        mould.stop_waiting()
        mould.casting = None
        try:
            pidfd = let_go(pid, mould.go_fd, casting.ids and casting.ids(pid))
        except (HostError, OSError) as error:
            casting.then(0, -1, reason_for(error))
        else:
            casting.then(pid, pidfd, "")
        mould.close_go()

    def _is_known(self, pid: int) -> bool:
        """Return whether ``pid`` is a mould, the forge, a device or a broker: it will be reaped."""
        moulds = any(pid == mould.pid for mould in self._moulds)
        return moulds or pid == self._forge.pid or self._knows(pid)

    def _check_child(self, pid: int) -> None:
        """Check that ``pid`` is a child of the warden, and a new one.

        Raises:
            ProtocolError: it is not.
        """
        try:
            if pid < 1 or self._is_known(pid):
                raise ChildProcessError
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            raise ProtocolError(f"process {pid}, which is no new child") from None

    # The end of a mould.

    def _give_up(self, mould: Mould, reason: str) -> None:
        """End a mould that failed, and tell whoever waits for its process."""
        if mould not in self._moulds:
            return
        mould.reason = mould.reason or reason
        self._close(mould)
        if mould.pidfd < 0:
            self._forget(mould)
        else:
            mould.kill()
            self._tell_failure(mould)

    def _close(self, mould: Mould) -> None:
        if mould.is_open:
            mould.is_open = False
            self._loop.remove(mould.channel.fileno())
            mould.channel.close()
            mould.its_end.close()
            self._starts.leave(mould)

    def _reap(self, mould: Mould) -> None:
        while mould.is_open and self._receive(mould):  # messages from before its end
            pass
        self._close(mould)
        self._loop.remove(mould.pidfd)
        os.close(mould.pidfd)
        mould.pidfd = -1
        _, wait_status = os.waitpid(mould.pid, 0)
        mould.reason = mould.reason or f"its interpreter {describe_end(wait_status)}"
        self._forget(mould)

    def _forget(self, mould: Mould) -> None:
        self._moulds.remove(mould)
        if mould is self._spare:
            self._spare = None
        self._tell_failure(mould)
        self.on_mould_gone()

    def _tell_failure(self, mould: Mould) -> None:
        """Tell whoever waits for this mould that it has failed, and why."""
        mould.stop_waiting()
        mould.close_go()
        casting, mould.casting = mould.casting, None
        renewal, mould.renewal = mould.renewal, None
        reason = f"{_PREFIX}{mould.reason or self._forge.end or 'its interpreter is gone'}"
        if casting is not None:
            casting.close()
            self._loop.call_later(_SWEEP_SECONDS, self._sweep)
            casting.then(0, -1, reason)
        if renewal is not None:
            renewal(reason)

    def _sweep(self) -> None:
        """Reap unknown children: a mould had just made them when it was killed.

        They end by themselves, because nobody sends them the byte that they wait for.
        """
        try:
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if self._is_known(found.si_pid):
                    return
                os.waitpid(found.si_pid, 0)
        except ChildProcessError:
            return

    def _on_forge_end(self) -> None:
        for mould in [mould for mould in self._moulds if mould.pidfd < 0]:
            self._give_up(mould, f"the forge {self._forge.end}")
