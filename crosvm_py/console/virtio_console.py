# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's part of the virtio console: opening files, the user's keys, the window's size.

The device process gets the descriptors and serves them without the vmm. Only the keys of a terminal
pass through the vmm, because it must find Ctrl-A x in them even if guest and device hang.
"""

from __future__ import annotations

import fcntl
import os
import time
from functools import partial

from crosvm_py.config import VIRTIO_CONSOLE
from crosvm_py.console.ends import open_ends
from crosvm_py.console.input import TerminalInput
from devices.virtio.commands import Drain, Refused, SetWindow, Waiting
from devices.virtio.console.backlog import backlogs_bytes
from devices.virtio.console.device import ConsoleSpec, PortSpec
from sys_util.errors import raise_host_error
from sys_util.event_loop import EPOLLOUT
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from socket import socket

    from crosvm_py.config import SerialSpec
    from crosvm_py.console.ends import Ends
    from crosvm_py.console.input import TimerLoop
    from crosvm_py.console.terminal import Terminal
    from devices.virtio.commands import Command
    from sys_util.wire import Message

    Send = Callable[[Command, Callable[[Message], None]], None]

log = get_logger("crosvm.serial")


# So many keys wait for the device. After that TerminalInput stops reading, and later drops keys.
KEY_BYTES: Final = 4096
# Linux treats this key on hvc consoles as a break.
SYSRQ_KEY: Final = b"\x0f"

# If the device has no process at the moment, the size of a terminal is sent again after this time.
_RETRY_SECONDS: Final = 0.5

# A size that no terminal has: the device has to be told the real one.
_UNTOLD: Final = (-1, -1)

# How often the size of a pseudo-terminal is checked: no signal tells us that it has changed.
PTY_SECONDS: Final = 1.0

# The most time that slow readers get for the last output, and how often we ask about them.
DRAIN_SECONDS: Final = 1.0
DRAIN_STEP_SECONDS: Final = 0.02

_SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class KeyPipe:
    """``Receiver`` of the user's keys; it sends them to the device through a socket."""

    def __init__(self, sock: socket) -> None:
        """``sock`` is owned here from now on."""
        sock.setblocking(False)
        self.on_room: Callable[[], None] = _nothing
        self._socket = sock
        self._keys = bytearray()
        self._loop: TimerLoop | None = None
        self._watched = False

    @property
    def room(self) -> int:
        """How many bytes ``receive`` takes now."""
        return KEY_BYTES - len(self._keys)

    def start(self, loop: TimerLoop) -> None:
        """Use ``loop`` from now on to send keys when the device was too slow for them."""
        self._loop = loop

    def receive(self, data: bytes) -> int:
        """Send ``data`` to the device, as much as there is room for."""
        taken = data[: self.room]
        self._keys += taken
        self._flush()
        return len(taken)

    def send_break(self) -> None:
        """Send the SysRq key."""
        self.receive(SYSRQ_KEY)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _flush(self) -> None:
        try:
            del self._keys[: self._socket.send(self._keys)]
        except BlockingIOError:
            pass
        except OSError:
            self._keys.clear()  # the device process has ended; the supervisor handles that
        if bool(self._keys) == self._watched or self._loop is None:
            return
        self._watched = not self._watched
        if self._watched:
            self._loop.add(self._socket.fileno(), self._on_writable, events=EPOLLOUT)
        else:
            self._loop.remove(self._socket.fileno())

    def _on_writable(self, _events: int) -> None:
        self._flush()
        if self.room:
            self.on_room()


class _OpenPort:
    """One port: its description for the device, and the descriptors that the device gets."""

    def __init__(self, spec: SerialSpec, ends: Ends) -> None:
        from crosvm_py.console import terminal

        self.spec = spec
        self.ends = ends
        self.pty_fd = ends.pty_fd
        self.device_fds: list[int] = []
        self.keys: TerminalInput | None = None
        self.pipe: KeyPipe | None = None
        self.size = terminal.window_size(ends.size_fd)

    def hand_over(self) -> PortSpec:
        """Collect the descriptors for the device; return the port's description for it."""
        target, source = self.ends.target, self.ends.input
        if target is not None:
            self.device_fds.append(target.fd)
        kind = "none"
        if isinstance(source, TerminalInput):
            from sys_util import socket

            ours, theirs = socket.socketpair()
            self.keys, self.pipe = source, KeyPipe(ours)
            theirs.setblocking(False)
            self.device_fds.append(theirs.detach())
            kind = "stream"
        elif source is not None:
            fd, regular = source.release()
            self.device_fds.append(fd)
            kind = "regular" if regular else "stream"
        spec = self.spec
        return PortSpec(
            name=spec.name or "",
            is_console=is_hvc(spec),
            output="none" if target is None else target.kind,
            input=kind,
            columns=self.size[0],
            rows=self.size[1],
            has_size=self.ends.size_fd >= 0,
            write_limit=1 if target is None else target.write_limit,
            prefix=b"" if target is None else target.prefix,
        )


class VirtioConsole:
    """Every port of the virtio console. Owns the descriptors that the device does not get."""

    def __init__(self, ports: Sequence[tuple[SerialSpec, Ends]]) -> None:
        self._ports = [_OpenPort(spec, ends) for spec, ends in ports]
        self._specs = [port.hand_over() for port in self._ports]
        self._command: Send | None = None
        self._is_writing: Callable[[], bool] = lambda: False
        self._loop: TimerLoop | None = None
        self._undo_signal: Callable[[], None] = _nothing
        self._handed_over = False

    @property
    def ptys(self) -> tuple[tuple[str, str], ...]:
        """The pseudo-terminals: the place of the port in the machine, and the path."""
        found = ((port.spec.place(), port.ends.pty_name) for port in self._ports)
        return tuple((place, path) for place, path in found if path)

    @property
    def terminal(self) -> Terminal | None:
        """The user's terminal, if one of the ports reads it."""
        return next((port.ends.terminal for port in self._ports if port.ends.terminal), None)

    @property
    def keys(self) -> TerminalInput | None:
        """The input from that terminal."""
        return next((port.keys for port in self._ports if port.keys), None)

    @property
    def kernel_parameters(self) -> tuple[str, ...]:
        """Parameters for the kernel's command line: console=hvcN, where N counts the consoles."""
        consoles = [port.spec for port in self._ports if is_hvc(port.spec)]
        return tuple(f"console=hvc{n}" for n, spec in enumerate(consoles) if spec.console)

    def hand_over(self) -> tuple[ConsoleSpec, tuple[int, ...]]:
        """Return the device's Spec and descriptors; the caller owns them from now on."""
        self._handed_over = True
        fds = [fd for port in self._ports for fd in port.device_fds]
        fds.append(_backlog_memory(len(self._ports)))
        return ConsoleSpec(tuple(self._specs), has_backlogs=True), tuple(fds)

    def start(self, loop: TimerLoop, lock: AbstractContextManager[bool]) -> None:
        """Read the user's keys from now on, and send them to the device."""
        self._loop = loop
        for port in self._ports:
            if port.keys is not None and port.pipe is not None:
                port.pipe.start(loop)
                port.keys.start(port.pipe, loop, lock)

    def connect(self, command: Send, is_writing: Callable[[], bool] = lambda: False) -> None:
        """Use ``command`` from now on to send commands to the device. Call it in the main thread.

        The device is told the sizes of its terminals whenever they change. ``is_writing`` says
        whether there is output of the guest that the device process does not have yet.
        """
        from crosvm_py.console import terminal

        self._command, self._is_writing = command, is_writing
        loop = self._loop
        if loop is None or not any(port.ends.size_fd >= 0 for port in self._ports):
            return

        def on_resize() -> None:
            loop.call_soon_threadsafe(self.check_sizes)

        self._undo_signal = terminal.handle_resize(on_resize)
        self.check_sizes()
        if any(port.pty_fd >= 0 for port in self._ports):
            self._watch_ptys(loop)

    def drain(self, turn: Callable[[float], None]) -> None:
        """Give slow readers up to ``DRAIN_SECONDS`` to read the guest's last output.

        The vCPUs have stopped. ``turn`` runs the event loop once.
        """
        waiting: list[int] = []

        def take(answer: Message) -> None:
            waiting.append(answer.size_bytes if isinstance(answer, Waiting) else 0)

        deadline = time.monotonic() + DRAIN_SECONDS
        while self._command is not None and time.monotonic() < deadline:
            waiting.clear()
            self._command(Drain(), take)
            while not waiting and time.monotonic() < deadline:
                turn(DRAIN_STEP_SECONDS)
            if not (self._is_writing() or any(waiting)):
                return
            turn(DRAIN_STEP_SECONDS)

    def check_sizes(self) -> None:
        """Tell the device the size of each terminal whose size has changed."""
        from crosvm_py.console import terminal

        for number, port in enumerate(self._ports):
            size = terminal.window_size(port.ends.size_fd)
            if size != port.size and self._command is not None:
                port.size = size
                told = partial(self._on_told, port)
                self._command(SetWindow(number, *size), told)

    def _on_told(self, port: _OpenPort, answer: Message) -> None:
        if not isinstance(answer, Refused) or self._loop is None:
            return
        log.debug("the console does not take its size: %s", answer.reason)
        port.size = _UNTOLD
        self._loop.call_later(_RETRY_SECONDS, self.check_sizes)

    def close(self) -> None:
        """Close everything; the event loop no longer runs. May be called again."""
        self._undo_signal()
        self._undo_signal, self._command = _nothing, None
        ports, self._ports = self._ports, []
        for port in ports:
            if port.keys is not None:
                port.keys.close()
            if port.pipe is not None:
                port.pipe.close()
            if port.pty_fd >= 0:
                os.close(port.pty_fd)
            for fd in port.device_fds if not self._handed_over else ():
                os.close(fd)

    def _watch_ptys(self, loop: TimerLoop) -> None:
        if self._command is not None:
            self.check_sizes()
            loop.call_later(PTY_SECONDS, lambda: self._watch_ptys(loop))


def is_hvc(spec: SerialSpec) -> bool:
    """Return whether Linux shows the port as a terminal (hvcN), and not as /dev/vportNpM."""
    return spec.console or not spec.name


def open_virtio_console(specs: Sequence[SerialSpec]) -> VirtioConsole:
    """Open the output and input of every virtio port in ``specs``; there is at least one.

    Raises:
        ConfigError: a spec makes no sense.
        HostError: something cannot be opened; nothing stays open.
    """
    wanted = sorted((spec for spec in specs if spec.hardware == VIRTIO_CONSOLE), key=_number)
    opened: list[tuple[SerialSpec, Ends]] = []
    try:
        for spec in wanted:
            opened.append((spec, open_ends(spec)))
    except BaseException:
        for _, ends in opened:
            ends.close()
        raise
    return VirtioConsole(opened)


def _number(spec: SerialSpec) -> int:
    return spec.num


def _backlog_memory(count: int) -> int:
    """Return memory for output that slow readers of ``count`` ports have not read yet.

    Only the device uses it, but it outlives the device's processes.
    """
    fd = os.memfd_create("crosvm_console", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, backlogs_bytes(count))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(fd)
        raise_host_error("make", "memory for the virtio console", error)
    return fd


def _nothing() -> None:
    """Do nothing."""
