# SPDX-License-Identifier: BSD-3-Clause
"""Build ``sys_util._linux``: the Linux calls that Python's standard library lacks.

API mode: the compiler checks every prototype against the C library's headers. The functions are in
``linux.c``. Run as a program, it builds the module in place.
"""

from pathlib import Path
from typing import Final

from cffi import FFI

FOLDER: Final = Path(__file__).parent

CONSTANTS: Final = """
CAP_DAC_OVERRIDE CAP_KILL CAP_NET_ADMIN CAP_SETGID CAP_SETPCAP CAP_SETUID CAP_SYS_ADMIN
CLONE_NEWCGROUP CLONE_NEWIPC CLONE_NEWNET
CLONE_NEWNS CLONE_NEWPID CLONE_NEWUSER CLONE_NEWUTS CLONE_PARENT
MNT_DETACH MS_BIND MS_NODEV MS_NOEXEC
MS_NOSUID MS_PRIVATE MS_RDONLY MS_REC MS_REMOUNT PR_CAPBSET_DROP PR_CAP_AMBIENT
PR_CAP_AMBIENT_RAISE PR_SET_DUMPABLE PR_SET_NAME
PR_SET_NO_NEW_PRIVS PR_SET_PDEATHSIG FALLOC_FL_KEEP_SIZE FALLOC_FL_PUNCH_HOLE
FALLOC_FL_ZERO_RANGE F_OFD_GETLK F_OFD_SETLK
"""

PREAMBLE: Final = """
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include "linux.h"
"""


def make_builder() -> FFI:
    """Return the builder that ``setup.py`` names."""
    builder = FFI()
    builder.cdef((FOLDER / "linux.h").read_text())
    builder.cdef("".join(f"#define {name} ...\n" for name in CONSTANTS.split()))
    builder.set_source(
        "sys_util._linux",
        PREAMBLE,
        sources=["sys_util/ffi/linux.c"],
        depends=["sys_util/ffi/linux.h"],
        include_dirs=["sys_util/ffi"],
    )
    return builder


ffibuilder = make_builder()

if __name__ == "__main__":
    ffibuilder.compile(verbose=False)
