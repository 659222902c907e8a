# SPDX-License-Identifier: BSD-3-Clause
"""Make a policy from the calls that a process made, which allows these calls and no others.

The recording filter passes every call to a recorder (SECCOMP_RET_USER_NOTIF). If arguments decide
what a call does (vocabulary.py), the policy allows only the values that were seen.
"""

from __future__ import annotations

import errno
import struct

from seccomp.actions import (
    ALLOW,
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_KILL_PROCESS,
    SECCOMP_RET_USER_NOTIF,
)
from seccomp.cubes import complement, condition_boxes, narrow_all
from seccomp.rules import ALWAYS, Atom
from seccomp.syscalls import X32_SYSCALL_BIT, get_arch
from seccomp.vocabulary import MEANINGS
from sys_util.seccomp_notify import MARK
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from seccomp.actions import Action
    from seccomp.rules import Clause, Condition, PolicyTree

# A call that was seen with more different arguments than this is allowed with any arguments.
MAX_CLAUSES: Final = 64

# If the longest length that was seen exceeds this, the length is not limited.
_MAX_SIZE_BYTES: Final = 4096

# Calls that the C library, Python or the kernel may make at any time, whatever the guest does: for
# memory, time, signals, threads and the end of the process. A recording may miss some of them.
ANY_TIME: Final = frozenset(
    {
        *("brk", "mmap", "mremap", "munmap", "madvise", "mprotect", "clock_gettime", "futex"),
        *("getpid", "gettid", "tgkill", "rt_sigprocmask", "rt_sigreturn", "restart_syscall"),
        *("sched_yield", "prctl", "exit", "exit_group", "write"),
    }
)

# The calls by which a device reports a denied call, or Python a fatal error, before it ends.
_FINAL_CALLS: Final[dict[str, Condition]] = {
    "exit_group": ALWAYS,
    "write": ((Atom(2, "<=", 128),),),
}

# A recorded policy never allows these calls, and they fail during the recording.
_FORBIDDEN: Final = frozenset(
    {
        *("execve", "execveat", "fork", "vfork", "clone", "clone3", "ptrace", "process_vm_readv"),
        *("process_vm_writev", "mount", "umount2", "pivot_root", "chroot", "setns", "unshare"),
        *("open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr"),
        *("bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter"),
        *("io_uring_register", "keyctl", "add_key", "request_key", "init_module", "finit_module"),
        *("delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff"),
        *("seccomp", "pidfd_getfd", "open_by_handle_at", "setuid", "setgid", "setresuid"),
        *("setresgid", "setreuid", "setregid", "setgroups", "capset", "personality", "iopl"),
        *("ioperm", "modify_ldt", "acct", "quotactl", "settimeofday", "clock_settime", "adjtimex"),
    }
)
_PROT_EXEC: Final = 4
_PROTECTIONS: Final = {"mmap": 2, "mprotect": 2, "pkey_mprotect": 2}

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_EQUAL: Final = 0x15
_JUMP_GREATER_EQUAL: Final = 0x35
_RETURN: Final = 0x06
_NR, _ARCH, _LAST_ARG_LOW, _LAST_ARG_HIGH = 0, 4, 56, 60


def recording_filter(arch_name: str) -> bytes:
    """Return the program that asks the recorder about every call.

    It allows two kinds of calls without asking: those that send the listener to the recorder, and
    exit_group(2), because a process must be able to end without a recorder. It kills a process that
    makes a call of a foreign ABI.
    """
    arch = get_arch(arch_name)
    low, high = MARK & 0xFFFFFFFF, MARK >> 32
    call = arch.syscalls
    lines = (
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 0, 10, arch.audit),
        (_LOAD, 0, 0, _NR),
        (_JUMP_GREATER_EQUAL, 8, 0, X32_SYSCALL_BIT),
        (_JUMP_EQUAL, 8, 0, call["exit_group"]),
        (_JUMP_EQUAL, 1, 0, call["sendmsg"]),
        (_JUMP_EQUAL, 0, 4, call["close"]),
        (_LOAD, 0, 0, _LAST_ARG_LOW),
        (_JUMP_EQUAL, 0, 2, low),
        (_LOAD, 0, 0, _LAST_ARG_HIGH),
        (_JUMP_EQUAL, 2, 0, high),
        (_RETURN, 0, 0, SECCOMP_RET_USER_NOTIF),
        (_RETURN, 0, 0, SECCOMP_RET_KILL_PROCESS),
        (_RETURN, 0, 0, SECCOMP_RET_ALLOW),
    )
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


class _Seen:
    """Calls with the same arguments: how many, and their shortest and longest lengths."""

    def __init__(self) -> None:
        self.count = 0
        self.sizes: dict[int, tuple[int, int]] = {}

    def add(self, sizes: Sequence[tuple[int, int]]) -> None:
        self.count += 1
        for arg, size in sizes:
            low, high = self.sizes.get(arg, (size, size))
            self.sizes[arg] = (min(low, size), max(high, size))


class Recording:
    """The calls of processes under one policy; ``reference`` is the policy in force before.

    The rules for calls that may happen at any time are taken from ``reference``, unless ``exact``.
    """

    def __init__(self, arch_name: str, reference: PolicyTree, *, exact: bool = False) -> None:
        self._exact = exact
        self._arch = get_arch(arch_name)
        self._names = {number: name for name, number in self._arch.syscalls.items()}
        self._reference = reference
        self._seen: dict[tuple[int, tuple[tuple[int, int], ...]], _Seen] = {}
        self._selected: dict[int, tuple[tuple[int, str], ...]] = {}
        self.processes = 0
        self.refused: dict[str, int] = {}

    @property
    def calls(self) -> int:
        """How many calls were recorded."""
        return sum(seen.count for seen in self._seen.values())

    def name(self, number: int) -> str:
        """Return the name of a system call, or a made-up one that no policy can contain."""
        return self._names.get(number, f"syscall_{number}")

    def refusal(self, number: int, args: Sequence[int]) -> int:
        """Return the errno with which a call must fail, or 0 if it may be carried out.

        A call fails that no policy may allow, or that ``reference`` answers with an errno.
        """
        name = self.name(number)
        executable = name in _PROTECTIONS and args[_PROTECTIONS[name]] & _PROT_EXEC
        nameless = number not in self._names
        if name in _FORBIDDEN or executable or nameless:
            self.refused[name] = self.refused.get(name, 0) + 1
            # After ENOSYS the C library tries an older call.
            return errno.ENOSYS if nameless else errno.EPERM
        action = self._reference.judge(number, args, ALLOW)
        return action.data if action.kind == "errno" else 0

    def add(self, number: int, args: Sequence[int]) -> None:
        """Record one call that is carried out."""
        selected = self._selected.get(number)
        if selected is None:
            selected = self._selected[number] = self._select(number)
        sizes = []
        values = []
        for arg, kind in selected:
            if kind == "size":
                sizes.append((arg, args[arg]))
            elif kind != "pointer":
                values.append((arg, args[arg]))
            elif args[arg] == 0:
                values.append((arg, 0))
        key = (number, tuple(values))
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Seen()
        seen.add(sizes)

    def _select(self, number: int) -> tuple[tuple[int, str], ...]:
        """Return the arguments to record; a length only if ``reference`` may limit it."""
        meanings = MEANINGS.get(self.name(number), {})
        kinds = [(arg, meaning.family.kind) for arg, meaning in meanings.items()]
        rule = self._reference.rules.get(number)
        bounded = rule is None or rule.allow != ALWAYS
        return tuple((arg, kind) for arg, kind in kinds if bounded or kind != "size")

    def conditions(self) -> dict[str, Condition]:
        """Return the condition on which each call is to be allowed, by name."""
        clauses: dict[str, dict[Clause, None]] = {}
        for (number, values), seen in self._seen.items():
            clause = (*(Atom(arg, "==", value) for arg, value in values), *_bounds(seen.sizes))
            clauses.setdefault(self.name(number), {})[clause] = None
        found = {name: normal(tuple(each)) for name, each in clauses.items()}
        for name, condition in (*_FINAL_CALLS.items(), *self._any_time()):
            found[name] = normal((*condition, *found.get(name, ())))
        return dict(sorted(found.items()))

    def _any_time(self) -> Iterator[tuple[str, Condition]]:
        for rule in self._reference.rules.values():
            if rule.name in ANY_TIME - _FINAL_CALLS.keys() and not self._exact:
                yield rule.name, rule.allow


def _bounds(sizes: dict[int, tuple[int, int]]) -> Iterator[Atom]:
    for arg, (low, high) in sizes.items():
        if low == high:
            yield Atom(arg, "==", low)
        elif high <= _MAX_SIZE_BYTES:
            if low:
                yield Atom(arg, ">=", low)
            yield Atom(arg, "<=", high)


def normal(condition: Condition) -> Condition:
    """Leave out clauses that others cover; if too many are left, return ``ALWAYS``."""
    kept: list[Clause] = []
    for clause in sorted(dict.fromkeys(condition), key=len):
        if not _covered(clause, tuple(kept)):
            kept = [*(each for each in kept if not _covered(each, (clause,))), clause]
    return ALWAYS if len(kept) > MAX_CLAUSES else tuple(sorted(kept, key=_order))


def _order(clause: Clause) -> list[tuple[int, int, str]]:
    return [(atom.arg, atom.value, atom.op) for atom in clause]


def _covered(clause: Clause, condition: Condition) -> bool:
    """Return whether ``condition`` allows all that ``clause`` allows."""
    boxes = condition_boxes((clause,))
    return not narrow_all(boxes, ([complement(atom) for atom in each] for each in condition))


class Excess(NamedTuple):
    """A clause of a system call that one policy allows and another one does not."""

    name: str
    clause: Clause


def excess(tree: PolicyTree, reference: PolicyTree) -> list[Excess]:
    """Return the clauses of ``tree`` that ``reference`` does not allow, or only in part."""
    found = []
    for rule in sorted(tree.rules.values(), key=lambda rule: rule.name):
        known = reference.rules.get(rule.number)
        for clause in rule.allow:
            if not _covered(clause, known.allow if known else ()):
                found.append(Excess(rule.name, clause))
    return found


def denials(reference: PolicyTree) -> Iterator[tuple[str, Action]]:
    """Yield the calls that a policy answers with an errno, and that errno."""
    for rule in reference.rules.values():
        if rule.otherwise is not None and rule.otherwise.kind == "errno":
            yield rule.name, rule.otherwise
