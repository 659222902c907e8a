# SPDX-License-Identifier: BSD-3-Clause
"""The control process, ``crosvm-control``: it alone meets the clients of a VM.

It reads and checks what they send, passes their requests on to the vmm, and returns the answers. It
opens no file itself: its opener does, for devices that are plugged in. It holds neither KVM nor
guest memory. The vmm reads what a guest wrote, so its answers are checked as
those of a stranger. The process ends when the vmm closes their channel.
"""

from __future__ import annotations

import gc
import os

from crosvm_py.control.dumping import Dumping
from crosvm_py.control.plugging import Plugger
from crosvm_py.control.protocol import (
    CONTROL_CODEC,
    MAX_REQUESTS,
    Answered,
    Ask,
    ControlFds,
)
from crosvm_py.control.socket_server import ControlServer
from crosvm_py.exit_status import EXIT_BUG, EXIT_HOST
from crosvm_py.opener.process import start_opener
from crosvm_py.requests.core_dump import DumpCore
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.plug import Confine, Plug
from crosvm_py.requests.protocol import MAX_REASON_CHARS, Failed
from crosvm_py.socket_path import BoundSocket
from jail.control import control_jail
from seccomp import Policy
from sys_util import linux, log, socket
from sys_util.channel import Channel
from sys_util.child_log import CALL_DENIED_HEAD, log_through, say_crashed
from sys_util.crash import crash_report
from sys_util.errors import (
    ChannelClosed,
    ChannelFull,
    ConfigError,
    ProtocolError,
    VmmError,
    describe,
)
from sys_util.event_loop import EventLoop
from sys_util.typing import TYPE_CHECKING, Final
from sys_util.wire import Codec, encode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from crosvm_py.api.vm import Ask as Handler
    from crosvm_py.requests.protocol import Request

_log = log.get_logger("crosvm.control")

_NUMBERS: Final = 1 << 32
_MAX_FILTER_BYTES: Final = 1 << 20


class VmmLink:
    """The channel to the vmm, and the requests that it has not answered yet. Owns the channel."""

    def __init__(self, loop: EventLoop, channel: Channel) -> None:
        self._loop = loop
        self._channel = channel
        self._next = 0
        self._asked: dict[int, tuple[Codec, Pending]] = {}
        loop.add(channel.fileno(), lambda _events: self._on_ready())

    def ask(self, request: Request, fds: Sequence[int] = ()) -> Pending:
        """Pass a request on, with descriptors, which stay the caller's.

        The answer comes later, and is one that the request may have.

        Raises:
            VmmError: the vmm takes no more requests now.
        """
        if len(self._asked) >= MAX_REQUESTS:
            raise VmmError("the VM is busy with other requests")
        number = self._next
        try:
            self._channel.send(Ask(number, encode(request)), fds)
        except ChannelFull as error:
            raise VmmError("the VM is busy with other requests") from error
        except ChannelClosed as error:
            raise VmmError("the VM has ended") from error
        self._next = (number + 1) % _NUMBERS
        pending = Pending()
        self._asked[number] = (Codec((request.ANSWER, Failed)), pending)
        return pending

    def _on_ready(self) -> None:
        try:
            received = self._channel.receive()
        except ChannelClosed:
            self._loop.stop()
            return
        except ProtocolError as error:
            _log.error("the vmm sends what is no answer: %s", error)
            self._loop.stop()
            return
        if received is None:
            return
        message, fds = received
        for fd in fds:
            os.close(fd)
        if isinstance(message, Answered):
            self._take(message)

    def _take(self, answered: Answered) -> None:
        asked = self._asked.pop(answered.number, None)
        if asked is None:
            _log.error("the vmm answers request %d, which it was not asked", answered.number)
            return
        codec, pending = asked
        try:
            answer = codec.decode(answered.answer)
        except ProtocolError as error:
            answer = Failed(f"the VM gives no proper answer: {error}"[:MAX_REASON_CHARS])
        pending.complete(answer)


def be_control(fds_word: str, vmm_pid: int) -> NoReturn:
    """Run as a control process, then exit; ``fds_word`` lists its descriptors (``ControlFds``)."""
    fds = ControlFds.read(fds_word)
    channel = Channel(socket.socket(fileno=fds.channel), CONTROL_CODEC)
    status = EXIT_BUG
    try:
        log_through(channel)
        _serve(channel, fds, vmm_pid)
        status = 0
    except (VmmError, OSError) as error:
        _log.error("%s", describe(error) if isinstance(error, VmmError) else error.strerror)
        status = EXIT_HOST
    except Exception as error:  # noqa: BLE001 - process entry: report every bug
        say_crashed(channel, crash_report(error))
    finally:
        os._exit(status)


def _serve(channel: Channel, fds: ControlFds, vmm_pid: int) -> None:
    linux.set_process_name("crosvm-control")
    loop = EventLoop()
    link = VmmLink(loop, channel)
    handler = _handler(loop, link, fds)
    if fds.listening >= 0:
        listening = BoundSocket(socket.socket(fileno=fds.listening), "", 0, 0)
        ControlServer(loop, listening, handler)
    if fds.api >= 0:
        from crosvm_py.api.start import serve_api

        listening_api = socket.socket(fileno=fds.api)
        serve_api(loop, handler, listening_api, fds.store, vmm_pid, boots=bool(fds.boots))
    policy = _policy("control", fds.policy)
    gc.freeze()
    gc.enable()
    if policy is not None:
        jail = control_jail(policy, has_api=fds.api >= 0)
        jail.enter()
        linux.report_denied_calls(channel.fileno(), CALL_DENIED_HEAD)
        jail.load_filter()
    loop.run()


def _handler(loop: EventLoop, link: VmmLink, given: ControlFds) -> Handler:
    """Return what serves the requests of clients; start the opener, if there is to be one."""
    policy = _policy("opener", given.opener_policy)
    plugger = dumping = None
    if given.orders >= 0:
        opener = start_opener(given.orders, policy, rules=given.rules)
        plugger = Plugger(loop, opener, link.ask)
        dumping = Dumping(link.ask, plugger.make)
        for fd in {given.orders, given.rules} - {-1}:
            os.close(fd)

    def handle(request: Request, fds: Sequence[int] = ()) -> Pending:
        if not isinstance(request, Plug | Confine | DumpCore):
            return link.ask(request, fds)
        if plugger is None or dumping is None:
            raise ConfigError("nothing can be opened for this VM")
        if isinstance(request, DumpCore):
            return dumping.dump(request)
        if isinstance(request, Confine):
            return plugger.confine(request)
        return plugger.plug(request, fds)

    return handle


def _policy(name: str, fd: int) -> Policy | None:
    """Read a filter from a file, which is closed; -1 for none."""
    if fd < 0:
        return None
    bpf = os.pread(fd, _MAX_FILTER_BYTES, 0)
    os.close(fd)
    return Policy(name, "", bpf)
