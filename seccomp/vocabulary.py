# SPDX-License-Identifier: BSD-3-Clause
"""Names of the arguments of system calls, and of their values.

An argument is listed here if its value decides what the call does: it is explained to people and
recorded. Descriptors, addresses and most lengths are not listed.
"""

from __future__ import annotations

from seccomp.rules import U64
from seccomp.syscalls import get_constants
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from seccomp.rules import Atom, Clause

_HIGH_BIT: Final = 1 << 63


class Family(NamedTuple):
    """The values of an argument: constants that start with ``prefixes``, but with none of ``but``.

    ``kind``: ``one`` of the constants, ``flags`` that are joined, ``size`` in bytes, ``pointer``,
    or ``number``. ``type_mask``: these bits of flags are one constant, not several flags. ``zero``
    is the name of 0. ``ioctl``: only constants that are requests of ioctl(2).
    """

    kind: str
    prefixes: tuple[str, ...] = ()
    but: tuple[str, ...] = ()
    zero: str = "0"
    type_mask: int = 0
    ioctl: bool = False


class Meaning(NamedTuple):
    """The name of an argument, and its values."""

    word: str
    family: Family


_ADVICE: Final = Family("one", ("MADV_",))
_CLOCK: Final = Family("one", ("CLOCK_",))
_CLONE: Final = Family("flags", ("CLONE_",))
_FALLOC: Final = Family("flags", ("FALLOC_FL_",))
_FCNTL: Final = Family(
    "one",
    ("F_DUPFD", "F_GET", "F_SET", "F_ADD_SEALS", "F_NOTIFY", "F_OFD_"),
    ("F_GETLK64", "F_SETLK64", "F_SETLKW64"),
)
_IOCTL: Final = Family(
    "one",
    ("KVM_", "VHOST_", "TUN", "TIOC", "TC", "FIO", "FI", "BLK", "FICLONE", "FS_IOC_"),
    ioctl=True,
)
_MAP: Final = Family("flags", ("MAP_",), ("MAP_ANON ", "MAP_HUGE_", "MAP_TYPE", "MAP_FAILED"))
_MSG: Final = Family("flags", ("MSG_",))
_NUMBER: Final = Family("number")
_OPEN: Final = Family("flags", ("O_",), ("O_NDELAY",))
_POINTER: Final = Family("pointer")
_PRCTL: Final = Family(
    "one", ("PR_SET_", "PR_GET_", "PR_CAPBSET_"), ("PR_SET_MM_", "PR_SET_VMA_", "PR_SET_PTRACER_")
)
_PROT: Final = Family("flags", ("PROT_",), zero="PROT_NONE")
_RWF: Final = Family("flags", ("RWF_",), ("RWF_SUPPORTED",))
_SIGNAL: Final = Family("one", ("SIG",), ("SIG_", "SIGEV_", "SIGIOT", "SIGCLD", "SIGPOLL"))
_SIZE: Final = Family("size")
_SOCKET_DOMAIN: Final = Family("one", ("AF_",), ("AF_FILE", "AF_LOCAL", "AF_ROUTE"))
_SOCKET_LEVEL: Final = Family("one", ("SOL_",))
_SOCKET_OPTION: Final = Family("one", ("SO_",))
_SOCKET_TYPE: Final = Family("flags", ("SOCK_",), ("SOCK_PACKET",), type_mask=0xF)

_SOCKET: Final = {
    0: Meaning("domain", _SOCKET_DOMAIN),
    1: Meaning("type", _SOCKET_TYPE),
    2: Meaning("protocol", _NUMBER),
}
_SOCKET_OPTIONS: Final = {
    1: Meaning("level", _SOCKET_LEVEL),
    2: Meaning("option", _SOCKET_OPTION),
}
_NEW_FD: Final = Meaning("flags", _OPEN)

MEANINGS: Final[dict[str, dict[int, Meaning]]] = {
    "accept4": {3: Meaning("flags", _SOCKET_TYPE)},
    "arch_prctl": {0: Meaning("operation", Family("one", ("ARCH_",)))},
    "bpf": {0: Meaning("command", _NUMBER)},
    "clock_gettime": {0: Meaning("clock", _CLOCK)},
    "clock_nanosleep": {0: Meaning("clock", _CLOCK)},
    "clone": {0: Meaning("flags", _CLONE)},
    "connect": {2: Meaning("length of the address", _SIZE)},
    "dup3": {2: _NEW_FD},
    "epoll_create1": {0: _NEW_FD},
    "epoll_pwait": {4: Meaning("signal mask", _POINTER)},
    "eventfd2": {1: Meaning("flags", Family("flags", ("EFD_",)))},
    "fallocate": {1: Meaning("mode", _FALLOC)},
    "fcntl": {1: Meaning("command", _FCNTL)},
    "getpgid": {0: Meaning("process", _NUMBER)},
    "getrandom": {2: Meaning("flags", Family("flags", ("GRND_",)))},
    "getsockopt": _SOCKET_OPTIONS,
    "ioctl": {1: Meaning("request", _IOCTL)},
    "keyctl": {0: Meaning("operation", _NUMBER)},
    "kill": {1: Meaning("signal", _SIGNAL)},
    "lseek": {2: Meaning("whence", Family("one", ("SEEK_",), ("SEEK_MAX",)))},
    "madvise": {2: Meaning("advice", _ADVICE)},
    "memfd_create": {1: Meaning("flags", Family("flags", ("MFD_",)))},
    "mlockall": {0: Meaning("flags", Family("flags", ("MCL_",)))},
    "mmap": {2: Meaning("protection", _PROT), 3: Meaning("flags", _MAP)},
    "mprotect": {2: Meaning("protection", _PROT)},
    "mremap": {3: Meaning("flags", Family("flags", ("MREMAP_",)))},
    "open": {1: _NEW_FD},
    "openat": {2: _NEW_FD},
    "personality": {0: Meaning("personality", _NUMBER)},
    "pidfd_send_signal": {1: Meaning("signal", _SIGNAL), 3: Meaning("flags", _NUMBER)},
    "pipe2": {1: _NEW_FD},
    "pkey_mprotect": {2: Meaning("protection", _PROT)},
    "ppoll": {3: Meaning("signal mask", _POINTER)},
    "prctl": {0: Meaning("operation", _PRCTL)},
    "preadv2": {5: Meaning("flags", _RWF)},
    "prlimit64": {1: Meaning("resource", _NUMBER)},
    "ptrace": {0: Meaning("request", _NUMBER)},
    "pwritev2": {5: Meaning("flags", _RWF)},
    "read": {2: Meaning("length", _SIZE)},
    "recvfrom": {3: Meaning("flags", _MSG), 4: Meaning("address", _POINTER)},
    "recvmmsg": {3: Meaning("flags", _MSG)},
    "recvmsg": {2: Meaning("flags", _MSG)},
    "rt_sigaction": {0: Meaning("signal", _SIGNAL)},
    "seccomp": {0: Meaning("operation", _NUMBER)},
    "sendmmsg": {3: Meaning("flags", _MSG)},
    "sendmsg": {2: Meaning("flags", _MSG)},
    "sendto": {3: Meaning("flags", _MSG), 4: Meaning("address", _POINTER)},
    "setns": {1: Meaning("type", _CLONE)},
    "setrlimit": {0: Meaning("resource", _NUMBER)},
    "setsockopt": _SOCKET_OPTIONS,
    "shutdown": {1: Meaning("direction", Family("one", ("SHUT_",)))},
    "socket": _SOCKET,
    "socketpair": _SOCKET,
    "tgkill": {2: Meaning("signal", _SIGNAL)},
    "timerfd_create": {1: Meaning("flags", Family("flags", ("TFD_CLOEXEC", "TFD_NONBLOCK")))},
    "tkill": {1: Meaning("signal", _SIGNAL)},
    "unlinkat": {2: Meaning("flags", _NUMBER)},
    "unshare": {0: Meaning("flags", _CLONE)},
    "write": {2: Meaning("length", _SIZE)},
}

# The second byte of ioctl requests: of <linux/kvm.h>, <linux/vhost.h>, <linux/if_tun.h>, terminals,
# block devices and file systems.
_IOCTL_TYPES: Final = frozenset({0xAE, 0xAF, ord("T"), 0x12, 0x94, ord("X"), ord("f"), 0})


def is_ioctl(name: str, value: int) -> bool:
    """Return whether a constant is a request of ioctl(2), unlike others of the same header."""
    kind = value >> 8 & 0xFF
    if name.startswith("KVM_"):
        return kind == 0xAE and value >> 32 == 0
    if name.startswith("VHOST_"):
        return kind == 0xAF
    return kind in _IOCTL_TYPES and value >> 32 == 0


class Vocabulary:
    """The names of one architecture."""

    def __init__(self, arch: str) -> None:
        self._constants = get_constants(arch)
        self._tables: dict[Family, dict[int, str]] = {}

    def argument(self, call: str, arg: int) -> str:
        """Return an argument's name for people and for policies, such as ``flags (arg2)``."""
        meaning = MEANINGS.get(call, {}).get(arg)
        return f"{meaning.word} (arg{arg})" if meaning else f"arg{arg}"

    def value(self, call: str, arg: int, value: int) -> str:
        """Return a value as in a policy, with names if there are any."""
        family = MEANINGS.get(call, {}).get(arg, Meaning("", _NUMBER)).family
        return self._text(family, value)

    def atom(self, call: str, atom: Atom) -> str:
        """Return a comparison as in a policy."""
        return f"arg{atom.arg} {atom.op} {self.value(call, atom.arg, atom.value)}"

    def clause(self, call: str, clause: Clause) -> str:
        """Return comparisons that must all hold, as in a policy."""
        return " && ".join(self.atom(call, atom) for atom in clause)

    def names(self, call: str, arg: int, value: int) -> list[str]:
        """Return the names of the bits of ``value``; the bits without a name are one number."""
        family = MEANINGS.get(call, {}).get(arg, Meaning("", _NUMBER)).family
        return self._flags(family, value) if family.kind == "flags" else [_number(value)]

    def _text(self, family: Family, value: int) -> str:
        if family.kind == "one":
            return self._table(family).get(value) or _number(value)
        if family.kind == "flags":
            if value == 0:
                return family.zero
            if value & _HIGH_BIT:
                inverted = self._flags(family, ~value & U64)
                return f"~{inverted[0]}" if len(inverted) == 1 else f"~({' | '.join(inverted)})"
            return " | ".join(self._flags(family, value))
        return _number(value)

    def _flags(self, family: Family, value: int) -> list[str]:
        table = self._table(family)
        names = []
        if kind := value & family.type_mask:
            names.append(table.get(kind) or _number(kind))
            value &= ~family.type_mask
        rest = 0
        for bit in range(64):
            if value >> bit & 1:
                name = table.get(1 << bit)
                names += [name] if name else []
                rest |= 0 if name else 1 << bit
        return names + ([_number(rest)] if rest or not names else [])

    def _table(self, family: Family) -> dict[int, str]:
        """Return the name of each value: the shortest one, and of several the first."""
        if family not in self._tables:
            found: dict[int, str] = {}
            for name in sorted(self._members(family), key=lambda name: (len(name), name)):
                found.setdefault(self._constants[name] & U64, name)
            self._tables[family] = found
        return self._tables[family]

    def _members(self, family: Family) -> Iterable[str]:
        for name, value in self._constants.items():
            left_out = any(f"{name} ".startswith(prefix) for prefix in family.but)
            other = family.ioctl and not is_ioctl(name, value)
            if name.startswith(family.prefixes) and not left_out and not other:
                yield name


def _number(value: int) -> str:
    """Return a number as people write it: decimal if it is small."""
    if value < 1024:
        return str(value)
    if value > U64 - 1024:
        return str(value - U64 - 1)
    return f"~{~value & U64:#x}" if value & _HIGH_BIT else f"{value:#x}"
