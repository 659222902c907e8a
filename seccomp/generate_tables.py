# SPDX-License-Identifier: BSD-3-Clause
"""Write the tables of system call numbers and constants from the installed kernel and C headers.

``python -m seccomp.generate_tables`` in a checkout rewrites ``seccomp/syscalls_x86_64.py`` and
``seccomp/constants_x86_64.py``. It needs a C compiler, ``libc6-dev`` and ``linux-libc-dev``, and
nothing else ever runs it: the tables are part of the source, so that a policy means the same on
every machine. Names that are newer than the headers of Debian 12 stand in ``NEWER_*`` below.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from typing import Final

HEADERS: Final = (
    *("errno.h", "fcntl.h", "sched.h", "signal.h", "time.h", "unistd.h", "asm/prctl.h"),
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
_FAILED_LINE: Final = re.compile(r"^constants\.c:(\d+):.*error:", re.MULTILINE)


def preprocess(*headers: str) -> dict[str, str]:
    """Return every object-like macro that the headers define, unexpanded."""
    source = "#define _GNU_SOURCE\n" + "".join(f"#include <{header}>\n" for header in headers)
    done = subprocess.run(
        ["cc", "-E", "-dM", "-x", "c", "-"],
        input=source,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(_DEFINE.findall(done.stdout))


def evaluate(names: list[str]) -> dict[str, int]:
    """Let the compiler say what each macro is worth; drop those that are no integer constant."""
    with tempfile.TemporaryDirectory() as folder:
        while True:
            lines = ["#define _GNU_SOURCE", "#include <stdio.h>"]
            lines += [f"#include <{header}>" for header in HEADERS]
            first = len(lines) + 1
            lines += [f"static const long long v_{name} = (long long)({name});" for name in names]
            lines.append("int main(void) {")
            lines += [f'printf("{name} %lld\\n", v_{name});' for name in names]
            lines.append("}")
            with open(os.path.join(folder, "constants.c"), "w", encoding="ascii") as file:
                file.write("\n".join(lines) + "\n")
            done = subprocess.run(
                ["cc", "-fmax-errors=0", "-o", "constants", "constants.c"],
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
        shown = subprocess.run(
            [os.path.join(folder, "constants")], capture_output=True, text=True, check=True
        )
    pairs = (line.split() for line in shown.stdout.splitlines())
    return {name: int(value) for name, value in pairs}


def write_table(path: str, summary: str, variable: str, table: dict[str, int]) -> None:
    """Write one module with one dictionary."""
    with open(path, "w", encoding="ascii") as file:
        file.write("# SPDX-License-Identifier: BSD-3-Clause\n")
        file.write(f'"""{summary} Made by seccomp/generate_tables.py."""\n\n')
        file.write("from __future__ import annotations\n\n")
        file.write("from typing import Final\n\n")
        file.write(f"{variable}: Final[dict[str, int]] = {{\n")
        for name, value in table.items():
            file.write(f'    "{name}": {value:#x},\n' if value > 9 else f'    "{name}": {value},\n')
        file.write("}\n")


def main() -> None:
    """Write both tables for x86-64 beside this file."""
    folder = os.path.dirname(os.path.abspath(__file__))
    numbers = {
        name.removeprefix("__NR_"): int(value)
        for name, value in preprocess("asm/unistd_64.h").items()
        if name.startswith("__NR_") and value.isdecimal()
    }
    numbers = dict(sorted((numbers | NEWER_SYSCALLS).items(), key=lambda item: item[1]))
    write_table(
        os.path.join(folder, "syscalls_x86_64.py"),
        "System call numbers of x86-64.",
        "SYSCALLS",
        numbers,
    )
    names = sorted(name for name in preprocess(*HEADERS) if _WANTED.match(name))
    write_table(
        os.path.join(folder, "constants_x86_64.py"),
        "Constants of x86-64 that a policy may name.",
        "CONSTANTS",
        dict(sorted((evaluate(names) | NEWER_CONSTANTS).items())),
    )


if __name__ == "__main__":
    main()
