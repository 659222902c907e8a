# SPDX-License-Identifier: BSD-3-Clause
"""Places that a program is started in: user namespaces, fewer capabilities, tighter limits.

``python -m tests.support.places root UIDS GIDS COMMAND…`` is uid 0 of a user namespace with these
maps; with ``deny CALL ERRNO COMMAND…`` a system call fails, as in many a container; with ``harden
COMMAND…`` only CAP_SYS_ADMIN makes user namespaces, as on many a Debian.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
import sys
from typing import TYPE_CHECKING, Final

from seccomp.syscalls_x86_64 import SYSCALLS
from sys_util import linux
from sys_util.seccomp_notify import Listener, load_recording_filter

if TYPE_CHECKING:
    from pathlib import Path
    from typing import NoReturn

KVM: Final = "/dev/kvm"

BPF_LD_W_ABS: Final = 0x20
BPF_JEQ_K: Final = 0x15
BPF_RET_K: Final = 0x06
SECCOMP_RET_ERRNO: Final = 0x0005_0000
SECCOMP_RET_USER_NOTIF: Final = 0x7FC0_0000
SECCOMP_RET_ALLOW: Final = 0x7FFF_0000
_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter


def root_of_namespace(uids: str, gids: str | None = None) -> list[str]:
    """Return the words before a command that make it uid 0 of a namespace with this map."""
    return [sys.executable, "-m", __name__, "root", uids, uids if gids is None else gids]


def without(*capabilities: str) -> list[str]:
    """Return the words before a command of root that take capabilities from it for good."""
    change = ",".join(f"-{each}" for each in capabilities)
    return ["setpriv", f"--bounding-set={change}", f"--inh-caps={change}"]


def ordinary(uid: int) -> list[str]:
    """Return the words before a command that make it an ordinary user's."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


def denied(call: str, reason: int) -> list[str]:
    """Return the words before a command for which a system call fails with an errno."""
    return [sys.executable, "-m", __name__, "deny", call, str(reason)]


def hardened() -> list[str]:
    """Return the words before a command of root with kernel.unprivileged_userns_clone=0.

    This stands in for a kernel of Debian's: its sysctl can be read, and it is obeyed.
    """
    here = "/proc/sys/kernel"
    script = (
        f"actions=$(cat {here}/seccomp/actions_avail) && mount -t tmpfs none {here} && "
        f'mkdir {here}/seccomp && echo "$actions" >{here}/seccomp/actions_avail && '
        f'echo 0 >{here}/unprivileged_userns_clone && exec "$@"'
    )
    return [
        "unshare",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        sys.executable,
        "-m",
        __name__,
        "harden",
    ]


def limited(**limits: int) -> list[str]:
    """Return the words before a command that set both limits of each kind, as ``nofile=48``."""
    return ["prlimit", *(f"--{kind}={value}:{value}" for kind, value in limits.items())]


def make_kvm_for_all(path: Path) -> list[str]:
    """Make a node; return the words before a command of root that let every user use KVM there."""
    os.mknod(path, stat.S_IFCHR, os.stat(KVM).st_rdev)
    path.chmod(0o666)
    script = f'mount --bind {path} {KVM} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


def be_root(uids: str, gids: str, *command: str) -> int:
    """Run a command as uid 0 of a namespace; return its exit status."""
    ready_read, ready_write = os.pipe()
    pid = linux.clone(linux.CLONE_NEWUSER)
    if pid == 0:
        try:
            os.close(ready_write)
            os.read(ready_read, 1)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            os.execvp(command[0], command)
        finally:
            os._exit(127)
    for name, content in (("uid_map", uids), ("gid_map", gids)):
        with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
            file.write(content)
    os.write(ready_write, b"!")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def deny(call: str, reason: str, *command: str) -> NoReturn:
    """Become a command for which a system call fails."""
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.load_seccomp_filter(
        b"".join(
            _INSTRUCTION.pack(*instruction)
            for instruction in (
                (BPF_LD_W_ABS, 0, 0, 0),  # the number
                (BPF_JEQ_K, 0, 1, SYSCALLS[call]),
                (BPF_RET_K, 0, 0, SECCOMP_RET_ERRNO | int(reason)),
                (BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW),
            )
        )
    )
    os.execvp(command[0], command)


def harden(*command: str) -> int:
    """Run a command in whose processes only CAP_SYS_ADMIN makes user namespaces."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        load_recording_filter(_asks_about("clone"), theirs.detach(), "clone")
        os.execvp(command[0], command)
    theirs.close()
    (fd,) = socket.recv_fds(ours, 64, 1)[1]
    listener = Listener(fd)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while not poll.poll()[0][1] & select.POLLHUP:
        call = listener.receive()
        if call is None:
            continue
        if call.args[0] & linux.CLONE_NEWUSER and not _may_administer(call.pid):
            listener.refuse(call.id, errno.EPERM)
        else:
            listener.let_go_on(call.id)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _asks_about(call: str) -> bytes:
    return b"".join(
        _INSTRUCTION.pack(*instruction)
        for instruction in (
            (BPF_LD_W_ABS, 0, 0, 0),
            (BPF_JEQ_K, 0, 1, SYSCALLS[call]),
            (BPF_RET_K, 0, 0, SECCOMP_RET_USER_NOTIF),
            (BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW),
        )
    )


def _may_administer(pid: int) -> bool:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        (held,) = (int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    return bool(held >> linux.CAP_SYS_ADMIN & 1)


if __name__ == "__main__":
    sys.exit({"root": be_root, "deny": deny, "harden": harden}[sys.argv[1]](*sys.argv[2:]))
