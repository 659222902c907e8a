# SPDX-License-Identifier: BSD-3-Clause
"""Write the tables of system call numbers and constants from the installed kernel and C headers.

``python -m seccomp.generate_tables`` in a checkout rewrites ``seccomp/syscalls_*.py`` and
``seccomp/constants_*.py`` for every architecture. It needs ``gcc``, ``gcc-aarch64-linux-gnu``,
``libc6-dev``, ``libc6-dev-arm64-cross``, ``linux-libc-dev`` and ``linux-libc-dev-arm64-cross``. A
build does not run it: the tables are part of the source, so that a policy means the same on every
machine. Names that are newer than the headers of Debian 12 are in ``NEWER_*`` below.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from typing import Final, NamedTuple


class Target(NamedTuple):
    """An architecture: its name in uname(2), its name in English, and its compiler."""

    name: str
    title: str
    compiler: str


TARGETS: Final = (
    Target("x86_64", "x86-64", "x86_64-linux-gnu-gcc"),
    Target("aarch64", "64-bit Arm", "aarch64-linux-gnu-gcc"),
)

HEADERS: Final = (
    *("errno.h", "fcntl.h", "sched.h", "signal.h", "time.h", "unistd.h"),
    *("sys/epoll.h", "sys/eventfd.h", "sys/file.h", "sys/mman.h", "sys/mount.h", "sys/prctl.h"),
    *("sys/socket.h", "sys/stat.h", "sys/timerfd.h", "sys/un.h", "sys/wait.h", "netinet/in.h"),
    *("asm/ioctls.h", "linux/falloc.h", "linux/fs.h", "linux/futex.h", "linux/if_tun.h"),
    *("linux/kvm.h", "linux/random.h", "linux/userfaultfd.h", "linux/vhost.h"),
)

PREFIXES: Final = (
    *("AF", "ARCH", "AT", "BLK", "CLOCK", "CLONE", "E[A-Z0-9]+$", "EFD", "EPOLL", "F", "FALLOC_FL"),
    *("FD", "FICLONE", "FIO", "FUTEX", "GRND", "IPPROTO", "KVM", "LOCK", "MADV", "MAP", "MCL"),
    *("MFD", "MREMAP", "MSG", "MS", "O", "PF", "PR", "PROT", "P", "RWF", "SCHED", "SEEK", "SHUT"),
    *(
        "SIG",
        "SO",
        "SOCK",
        "SOL",
        "STATX",
        "S_I",
        "TC",
        "TFD",
        "TIOC",
        "TUN",
        "UFFD",
        "USERFAULTFD",
    ),
    *("VHOST", "W"),
)

NEWER_SYSCALLS: Final = {
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}

NEWER_CONSTANTS: Final = {
    "MADV_GUARD_INSTALL": 102,
    "MADV_GUARD_REMOVE": 103,
    "MFD_EXEC": 0x10,
    "MFD_NOEXEC_SEAL": 0x08,
    "RWF_DONTCACHE": 0x80,
    "RWF_NOAPPEND": 0x20,
}

_DEFINE: Final = re.compile(r"^#define ([A-Za-z_]\w*) (.+)$", re.MULTILINE)
_WANTED: Final = re.compile(
    r"(?:" + "|".join(p if "$" in p else p + r"_?[A-Z]" for p in PREFIXES) + ")"
)
_UNISTD: Final = "asm/unistd.h"
_OWN_HEADERS: Final[dict[str, tuple[str, ...]]] = {"x86_64": ("asm/prctl.h",), "aarch64": ()}
# These are no system calls: the end of a table, and the place for an architecture's own calls.
_NO_CALLS: Final = ("__NR_syscalls", "__NR_arch_specific_syscall")
_VALUE: Final = re.compile(r"^v_(\w+):\n\t\.(quad|xword|zero)\t(-?\d+)$", re.MULTILINE)
_FAILED_LINE: Final = re.compile(r"^constants\.c:(\d+):.*error:", re.MULTILINE)


def preprocess(target: Target, *headers: str) -> list[str]:
    """Return the names of every object-like macro that the headers define."""
    done = subprocess.run(
        [target.compiler, "-E", "-dM", "-x", "c", "-"],
        input=_includes(headers),
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name, _ in _DEFINE.findall(done.stdout)]


def _includes(headers: tuple[str, ...]) -> str:
    return "#define _GNU_SOURCE\n" + "".join(f"#include <{header}>\n" for header in headers)


def evaluate(target: Target, headers: tuple[str, ...], names: list[str]) -> dict[str, int]:
    """Let the compiler find the value of each macro; leave out those that are no integer."""
    with tempfile.TemporaryDirectory() as folder:
        while True:
            head = _includes(headers)
            first = head.count("\n") + 1
            values = "".join(f"const long long v_{name} = (long long)({name});\n" for name in names)
            with open(os.path.join(folder, "constants.c"), "w", encoding="ascii") as file:
                file.write(head + values)
            done = subprocess.run(
                [target.compiler, "-fmax-errors=0", "-S", "-o", "-", "constants.c"],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                break
            failed = {int(line) - first for line in _FAILED_LINE.findall(done.stderr)}
            if not failed & set(range(len(names))):
                raise SystemExit(done.stderr)
            names = [name for index, name in enumerate(names) if index not in failed]
    return {
        # A macro that is a string becomes the name of a label, which the pattern does not match.
        name: 0 if directive == "zero" else int(value)
        for name, directive, value in _VALUE.findall(done.stdout)
    }


def write_table(path: str, summary: str, variable: str, table: dict[str, int]) -> None:
    """Write one module with one dictionary."""
    with open(path, "w", encoding="ascii") as file:
        file.write("# SPDX-License-Identifier: BSD-3-Clause\n")
        file.write(f'"""{summary} Made by seccomp/generate_tables.py."""\n\n')
        file.write("from __future__ import annotations\n\n")
        file.write("from sys_util.typing import Final\n\n")
        file.write(f"{variable}: Final[dict[str, int]] = {{\n")
        for name, value in table.items():
            file.write(
                f'    "{name}": 0x{value:X},\n' if value > 9 else f'    "{name}": {value},\n'
            )
        file.write("}\n")


def write_tables(target: Target) -> None:
    """Write both tables of an architecture beside this file."""
    folder = os.path.dirname(os.path.abspath(__file__))
    calls = [name for name in preprocess(target, _UNISTD) if name.startswith("__NR_")]
    calls = [name for name in calls if name not in _NO_CALLS]
    numbers = {
        name.removeprefix("__NR_"): value
        for name, value in evaluate(target, (_UNISTD,), calls).items()
    }
    write_table(
        os.path.join(folder, f"syscalls_{target.name}.py"),
        f"System call numbers of {target.title}.",
        "SYSCALLS",
        dict(sorted((numbers | NEWER_SYSCALLS).items(), key=lambda item: item[1])),
    )
    headers = HEADERS + _OWN_HEADERS[target.name]
    names = sorted(name for name in preprocess(target, *headers) if _WANTED.match(name))
    write_table(
        os.path.join(folder, f"constants_{target.name}.py"),
        f"Constants of {target.title} that a policy may name.",
        "CONSTANTS",
        dict(sorted((evaluate(target, headers, names) | NEWER_CONSTANTS).items())),
    )


def main() -> None:
    """Write the tables of every architecture."""
    for target in TARGETS:
        write_tables(target)


if __name__ == "__main__":
    main()
