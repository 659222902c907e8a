# SPDX-License-Identifier: BSD-3-Clause
"""Attempts on the kernel: its rarely used parts, which is where its own defects are found."""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.breakout.attempt import Attempt, any_of, just, opens, refuse
from tests.breakout.hands import SYSCALLS, address, call, enter_by_int80

if TYPE_CHECKING:
    from tests.breakout.attempt import Cell

GROUP: Final = "kernel"

X32: Final = 0x4000_0000
_RET: Final = bytearray(struct.pack("BBhi", 0xB7, 0, 0, 0) + struct.pack("BBhi", 0x95, 0, 0, 0))
_LICENCE: Final = b"GPL\0"
# Far beyond every kernel's last call, and below what a 32-bit number could wrap into.
_NUMBERS: Final = range(1024)
# uretprobe and uprobe: the kernel (since 6.11, 6.18) lets no filter see them, and ends with SIGILL
# whoever is not in a trampoline of its own making.
_PROBES: Final = (335, 336)


def load_bpf(_cell: Cell) -> None:
    attributes = struct.pack(
        "IIQQIIQII", 1, 2, address(_RET), address(_LICENCE), 0, 0, 0, 0, 0
    ) + bytes(72)
    call("close", call("bpf", 5, attributes, len(attributes)))


def make_map(_cell: Cell) -> None:
    attributes = struct.pack("5I", 2, 4, 8, 1, 0) + bytes(108)
    call("close", call("bpf", 0, attributes, len(attributes)))


def count_events(_cell: Cell) -> None:
    attributes = bytearray(struct.pack("IIQ", 1, 128, 0) + bytes(112))
    call("close", call("perf_event_open", attributes, 0, -1, -1, 0))


def add_key(_cell: Cell) -> None:
    call("add_key", b"user\0", b"crosvm-breakout\0", b"x", 1, -2)


def any_number(cell: Cell) -> None:
    """Each number that no policy names: those between known calls and those above them."""
    known = set(SYSCALLS.values())
    free = [number for number in _NUMBERS if number not in known.union(_PROBES)]
    any_of([partial(call, number) for number in free])


def probes(_cell: Cell) -> None:
    any_of([partial(call, number) for number in _PROBES])


def by_int80(_cell: Cell) -> None:
    result = enter_by_int80(20)  # getpid of i386
    if result < 0:
        raise refuse("getpid", -result)


def by_x32(_cell: Cell) -> None:
    call(X32 | SYSCALLS["getpid"])


def fault_in_user_space(_cell: Cell) -> None:
    call("close", call("userfaultfd", 1))


def _all(name: str, numbers: tuple[str, ...]) -> Attempt:
    acts = [just(number) for number in numbers if number in SYSCALLS]

    def act(cell: Cell) -> None:
        any_of([partial(one, cell) for one in acts])

    return Attempt(GROUP, name, act)


ATTEMPTS: Final = (
    Attempt(GROUP, "load a BPF program", load_bpf, proof=True),
    Attempt(GROUP, "make a BPF map", make_map, proof=True),
    Attempt(GROUP, "count events", count_events, proof=True),
    Attempt(GROUP, "add a key", add_key),
    Attempt(GROUP, "request a key", just("request_key", b"user\0", b"x\0", 0, 0)),
    Attempt(GROUP, "ask for the session's keyring", just("keyctl", 0, -3, 1)),
    Attempt(GROUP, "serve page faults", fault_in_user_space, proof=True),
    Attempt(GROUP, "set an io_uring up", opens("io_uring_setup", 1, bytearray(120)), proof=True),
    Attempt(GROUP, "enter an io_uring", just("io_uring_enter", 0, 1, 0, 0, 0, 0)),
    Attempt(GROUP, "register with an io_uring", just("io_uring_register", 0, 0, 0, 0)),
    Attempt(GROUP, "set asynchronous I/O up", just("io_setup", 1, bytearray(8)), proof=True),
    Attempt(GROUP, "load another kernel", just("kexec_load", 0, 0, 0, 0), jail=True),
    Attempt(
        GROUP, "load another kernel by a file", just("kexec_file_load", 0, 0, 0, 0, 0), jail=True
    ),
    Attempt(GROUP, "load a module", just("init_module", bytearray(64), 64, b"\0"), jail=True),
    Attempt(GROUP, "load a module by a file", just("finit_module", 0, b"\0", 0), jail=True),
    Attempt(GROUP, "remove a module", just("delete_module", b"crosvm-none\0", 0), jail=True),
    Attempt(GROUP, "read the kernel's log", just("syslog", 3, bytearray(64), 64), proof=True),
    Attempt(GROUP, "clear the kernel's log", just("syslog", 5, 0, 0), jail=True),
    Attempt(
        GROUP, "restart the host", just("reboot", 0xFEE1DEAD, 672274793, 0x89ABCDEF, 0), jail=True
    ),
    Attempt(GROUP, "use every I/O port", just("iopl", 3), jail=True),
    Attempt(GROUP, "use one I/O port", just("ioperm", 0x80, 1, 1), jail=True),
    Attempt(GROUP, "keep accounts", just("acct", 0), jail=True),
    Attempt(GROUP, "swap to a file", just("swapon", b"/x\0", 0), jail=True),
    Attempt(GROUP, "stop swapping", just("swapoff", b"/x\0"), jail=True),
    Attempt(GROUP, "set the clock", just("clock_settime", 0, struct.pack("qq", 1, 1)), jail=True),
    Attempt(GROUP, "set the time", just("settimeofday", struct.pack("qq", 1, 1), 0), jail=True),
    Attempt(
        GROUP,
        "tune the clock",
        just("adjtimex", bytearray(struct.pack("Ixxxxq", 1, 1) + bytes(192))),
        jail=True,
    ),
    Attempt(GROUP, "set quotas", just("quotactl", 0x80000300, b"/x\0", 0, 0), jail=True),
    Attempt(GROUP, "watch every file", just("fanotify_init", 0, 0)),
    Attempt(GROUP, "open a message queue", just("mq_open", b"x\0", 0o102, 0o600, 0), jail=True),
    Attempt(GROUP, "make System V messages", just("msgget", 0, 0o1600), proof=True),
    Attempt(GROUP, "make System V semaphores", just("semget", 0, 1, 0o1600), proof=True),
    Attempt(GROUP, "make a secret memory", just("memfd_secret", 0)),
    Attempt(GROUP, "join a landlock", just("landlock_create_ruleset", 0, 0, 1)),
    _all("calls that no kernel serves", ("nfsservctl", "getpmsg", "putpmsg", "afs_syscall")),
    _all("calls of old module loaders", ("create_module", "query_module")),
    Attempt(GROUP, "every number without a name", any_number),
    Attempt(GROUP, "the calls of user probes", probes, alone=True),
    Attempt(GROUP, "a call of the x32 ABI", by_x32, alone=True),
    Attempt(GROUP, "a call of the 32-bit ABI", by_int80, alone=True),
)
