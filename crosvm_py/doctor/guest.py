# SPDX-License-Identifier: BSD-3-Clause
"""Run a guest to prove that guests can run: a program of a few bytes that resets the machine."""

from __future__ import annotations

import os
import struct
import subprocess
import sys

from sys_util.errors import HostError
from sys_util.typing import Final

# The ELF header and one program header of the System V ABI, EM_X86_64 and ET_EXEC. It is entered
# like Linux, in 64-bit mode (Documentation/arch/x86/boot.rst).
_HEADER: Final = struct.Struct("<4s5B7x2HI3QI6H")
_SEGMENT: Final = struct.Struct("<2I6Q")
_LOAD_GPA: Final = 0x20_0000
# mov $0xcf9, %dx; mov $6, %al; out %al, (%dx): a hard reset on any PC; hlt; jmp to the hlt.
_CODE: Final = bytes.fromhex("66baf90c b006 ee f4 ebfd")

_RESET: Final = 32  # exit status with --extended-status
_MIB: Final = "16"
_PATIENCE_SECONDS: Final = 60.0

_START: Final = "import sys; sys.path[:] = {path!r}; from crosvm_py.__main__ import main; {call}"
_CALL: Final = "sys.exit(main())"


def guest_image() -> bytes:
    """Return an ELF file with the program."""
    code_at = _HEADER.size + _SEGMENT.size
    header = _HEADER.pack(
        *(b"\x7fELF", 2, 1, 1, 0, 0),  # 64 bits, little-endian
        *(2, 62, 1, _LOAD_GPA + code_at, _HEADER.size, 0, 0),
        *(_HEADER.size, _SEGMENT.size, 1, 0, 0, 0),
    )
    size = code_at + len(_CODE)
    return header + _SEGMENT.pack(1, 5, 0, _LOAD_GPA, _LOAD_GPA, size, size, 4096) + _CODE


def try_guest() -> None:
    """Run the program by ``crosvm run``, as a user would, with the sandbox.

    Raises:
        HostError: it did not end by its reset; the error contains the last line of the output.
    """
    fd = os.memfd_create("crosvm_doctor", 0)
    try:
        os.write(fd, guest_image())
        program = _START.format(path=sys.path, call=_CALL)
        words = ["--no-syslog", "--extended-status", "--log-level", "error", "run", "-m", _MIB]
        done = subprocess.run(
            [sys.executable, "-I", "-c", program, *words, f"/proc/self/fd/{fd}"],
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise HostError("run", "a guest: it does not end", "see the kernel log") from error
    finally:
        os.close(fd)
    if done.returncode != _RESET:
        said = done.stderr.decode(errors="replace").split("\n")
        last = next((line for line in reversed(said) if line), f"exit status {done.returncode}")
        raise HostError("run", f"a guest: {last.removeprefix('crosvm: ')}")
