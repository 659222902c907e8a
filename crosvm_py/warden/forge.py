# SPDX-License-Identifier: BSD-3-Clause
"""The forge: a small process that executes fresh interpreters, and does nothing else.

The first device processes of a VM are forked from the warden. That is fast, but all of them share
one address layout and one stack canary, which a guest may learn from a device that it crashes. So
the next process of a device gets its own: the forge executes a new interpreter, a mould, which
imports the device code as it is installed now and makes one process. The warden's filter denies
execve, so the forge is forked before that filter is loaded. The forge takes orders from the warden
alone, and can execute only this one program.

Where it is built, the forge executes a small program (``forge/``, Rust) that has the loop below. So
it does not keep the pages of Python that it shares with the warden until either writes to them.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
from contextlib import suppress

from crosvm_py.exit_status import EXIT_BUG, EXIT_HOST
from crosvm_py.interpreter import interpreter_words, module_path
from crosvm_py.warden.forge_protocol import (
    FAILED_HEAD,
    FORGE_CODEC,
    FORGE_DENIED_HEAD,
    MAX_REASON_CHARS,
    Begun,
    Execute,
    Failed,
    StoredPolicy,
)
from jail.plan import load_filter
from jail.steps import DieWithParent
from sys_util import linux, msgpack
from sys_util.channel import Channel, socket_pair
from sys_util.crash import crash_report
from sys_util.errors import ChannelClosed, ProtocolError, VmmError, describe, raise_host_error
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple
from sys_util.wire import encode

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    from crosvm_py.kinds.policies import RunPolicies
    from sys_util import socket

log = get_logger("crosvm.forge")

_SEALS: Final = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_STDIO: Final = frozenset({0, 1, 2})


def loop_path(executable: str, module: str) -> str:
    """Return where the loop of the forge is installed as a program, if it is: beside bin/crosvm.

    That is beside ``executable``, the interpreter. As bin/crosvm does, we know one other place: the
    one of what is installed beside Debian's packages. ``module`` is a file of the program.
    """
    folder = os.path.dirname(executable)
    is_local = folder == "/usr/bin" and module.startswith("/usr/local/")
    return f"{'/usr/local/bin' if is_local else folder}/crosvm-forge"


LOOP: Final = loop_path(sys.executable, __file__)

# The first code that a mould runs. If our modules cannot be imported, this must report why.
BOOT: Final = f"""
import gc, os, sys
gc.disable()
try:
    sys.path[:] = sys.argv[3:]
    from crosvm_py.warden.mould import be_mould
except BaseException as error:
    text = f"{{type(error).__name__}}: {{error}}".encode("ascii", "backslashreplace")
    text = text[:{MAX_REASON_CHARS}]
    os.write(int(sys.argv[1].split(",")[0]), {FAILED_HEAD!r} + len(text).to_bytes(2, "big") + text)
    os._exit({EXIT_HOST})
be_mould(sys.argv[1], sys.argv[2])
"""


class MouldFds(NamedTuple):
    """The descriptors that a mould inherits, beside the standard ones; -1 for none.

    ``policies`` is a sealed memfd with every filter of the run, and ``recorder`` the socket for
    those that are recorded.
    """

    channel: int
    null: int
    policies: int
    recorder: int

    def as_word(self) -> str:
        """Return them as an argument of the mould's command line."""
        return ",".join(map(str, self))

    @classmethod
    def read(cls, word: str) -> MouldFds:
        """Undo ``as_word``."""
        return cls(*map(int, word.split(",")))


class ForgeProcess(NamedTuple):
    """The warden's handle on its forge. The warden owns the descriptors."""

    sock: socket.socket
    pid: int
    pidfd: int


class _Program(NamedTuple):
    """What the forge executes: the file of the interpreter that runs this program."""

    fd: int
    words: tuple[str, ...]
    loop_fd: int  # the file of the loop without Python; -1 for none


def start_forge(policies: RunPolicies | None, kinds: Iterable[str], null_fd: int) -> ForgeProcess:
    """Fork the forge; the caller, the warden, is under no filter yet.

    Args:
        policies: the compiled policies of the run; ``None`` for ``--disable-sandbox``.
        kinds: the kinds of device in this VM; a mould imports their modules.
        null_fd: /dev/null.

    Raises:
        HostError: the host refuses it.
    """
    program_fd = policies_fd = loop_fd = -1
    recorder = -1 if policies is None else _recorder(policies)
    try:
        program_fd = os.open("/proc/self/exe", os.O_PATH | os.O_CLOEXEC)
        with suppress(FileNotFoundError):  # it is not built everywhere
            loop_fd = os.open(LOOP, os.O_PATH | os.O_CLOEXEC)
        if policies is not None:
            policies_fd = _store(policies)
        ours, theirs = socket_pair()
        # A mould's channel gets the number that the forge's own channel has in the forge.
        fds = MouldFds(theirs.fileno(), null_fd, policies_fd, recorder)
        words = (*interpreter_words(BOOT), fds.as_word(), ",".join(kinds), *module_path())
        pid = os.fork()
        if pid == 0:
            _be_forge(theirs, _Program(program_fd, words, loop_fd), fds, policies)
        theirs.close()
        try:
            return ForgeProcess(ours, pid, linux.watch_child(pid))
        except OSError:
            ours.close()
            raise
    except OSError as error:
        raise_host_error("start", "the forge, which makes processes again", error)
    finally:
        for fd in (program_fd, policies_fd, loop_fd):
            if fd >= 0:
                os.close(fd)


def _store(policies: RunPolicies) -> int:
    """Return a sealed memfd with the filters that a mould needs."""
    rows = [policies.warden, *policies.devices.values()]
    packed = msgpack.packb(
        [StoredPolicy(row.name, row.bpf, row.recorder is not None) for row in rows]
    )
    fd = os.memfd_create("crosvm_policies", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, packed)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def _recorder(policies: RunPolicies) -> int:
    """Return the socket to which recorded filters report, or -1; a run has at most one."""
    recorders = (policy.recorder for policy in policies.devices.values())
    return next((fd for fd in recorders if fd is not None), -1)


def _be_forge(
    sock: socket.socket, program: _Program, fds: MouldFds, policies: RunPolicies | None
) -> NoReturn:
    status = EXIT_BUG
    try:
        linux.set_process_name("crosvm-forge")
        DieWithParent().apply()
        keep = {program.fd, program.loop_fd, *fds} - {-1}
        linux.close_all_fds_except(keep | _STDIO)
        if policies is not None:
            # Some hosts require it to make namespaces; a mould needs no other capability.
            held = linux.capabilities() & {linux.CAP_SYS_ADMIN}
            linux.keep_capabilities_for_programs(held)
            linux.report_denied_calls(sock.fileno(), FORGE_DENIED_HEAD)
            load_filter(policies.forge)
        if program.loop_fd >= 0:
            _execute_loop(program, fds)
        _serve(Channel(sock, FORGE_CODEC), program, fds)
        status = 0
    except (VmmError, OSError) as error:
        log.error("%s", describe(error))
        status = EXIT_HOST
    except Exception as error:  # noqa: BLE001 - process entry: report every bug
        log.error("%s", crash_report(error))
    finally:
        os._exit(status)


def _execute_loop(program: _Program, fds: MouldFds) -> None:
    """Execute the loop without Python; return if the host refuses it, and Python has to serve."""
    for fd in (program.fd, *fds):
        if fd >= 0:
            os.set_inheritable(fd, True)
    words = ["crosvm-forge", str(fds.channel), str(program.fd), *program.words]
    try:
        os.execve(program.loop_fd, words, {})
    except OSError as error:
        log.debug("%s: %s", LOOP, error.strerror)
    # The filter denies the ioctl(2) by which Python would do this.
    for fd in (program.fd, fds.channel):
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)


def _serve(channel: Channel, program: _Program, fds: MouldFds) -> None:
    """Execute a mould whenever the warden asks for one, until it closes the channel.

    Raises:
        ProtocolError: the warden asks for anything else.
    """
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        poll.poll()
        try:
            received = channel.receive()
        except ChannelClosed:
            return
        if received is None:
            continue
        message, passed = received
        if not isinstance(message, Execute) or len(passed) != 1:
            raise ProtocolError(f"{type(message).__name__} with {len(passed)} descriptors")
        _execute(program, fds, passed[0])
        os.close(passed[0])


def _execute(program: _Program, fds: MouldFds, its_end: int) -> None:
    """Clone a child of the warden and have it execute the interpreter.

    ``its_end`` is the mould's end of its channel, which takes the number of the forge's channel.
    """
    try:
        if linux.clone(linux.CLONE_PARENT):
            return
    except OSError as error:
        _tell_failure(its_end, f"clone: {error.strerror}")
        return
    try:
        DieWithParent().apply()
        _say(its_end, Begun(os.getpid()))
        os.dup2(its_end, fds.channel)
        for fd in fds:
            if fd >= 0:
                os.set_inheritable(fd, True)
        os.execve(program.fd, program.words, {})
    except OSError as error:
        _tell_failure(its_end, f"execute the interpreter: {error.strerror}")
    finally:
        os._exit(EXIT_HOST)


def _tell_failure(fd: int, reason: str) -> None:
    _say(fd, Failed(reason[:MAX_REASON_CHARS]))


def _say(fd: int, message: Begun | Failed) -> None:
    """Send a message on the channel of a mould, and leave the channel open."""
    os.write(fd, encode(message))
