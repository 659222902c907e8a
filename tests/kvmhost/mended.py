# SPDX-License-Identifier: BSD-3-Clause
"""A copy of this machine's QEMU without a fault of its SVM that guests die of.

KVM injects an interrupt through the VMCB's EVENTINJ. ``helper_vmrun`` delivers it at once, but has
stored its vector in ``exception_index`` before (target/i386/tcg/…/svm_helper.c, QEMU 7.2 to
10.1). When the processor's thread is then kicked for something that is no interrupt (RCU does it),
``cpu_handle_exception`` takes that for an exception still to be raised: the guest gets the same
interrupt once more, wherever it is and with interrupts off as well, and the kick is lost. A kernel
meets that as a double fault at its system call's entry, or waits for a lock that it holds itself.

The store is one instruction, which the copy does without. The other three kinds of events need
theirs: they leave the helper for ``cpu_handle_exception``.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from tests.guests.cache import artefact, say

BINARY: Final = "qemu-system-x86_64"
AREA: Final = "kvmhost"

# As GCC 12 compiles ``case SVM_EVTINJ_TYPE_INTR``, rbx being env.
_INJECTION: Final = re.compile(
    rb"(?P<store>\x89\xb3..\xff\xff)"  # mov %esi, exception_index
    rb"\xc7\x83..\x00\x00\x00\x00\x00\x00"  # movl $0, exception_is_int
    rb"\x48\xc7\x83..\x00\x00\xff\xff\xff\xff"  # movq $-1, exception_next_eip
    rb"\xf6\x05....\x02\x0f\x85...."  # qemu_log_mask(CPU_LOG_TB_IN_ASM, …)
    rb"\xba\x01\x00\x00\x00\x48\x89\xdf\xe8",  # do_interrupt_x86_hardirq(env, vector, 1)
    re.DOTALL,
)
_NOP: Final = b"\x66\x0f\x1f\x44\x00\x00"


def mend(program: bytes) -> bytes | None:
    """Return QEMU's program without that store, or ``None`` if it is not found for sure."""
    found = list(_INJECTION.finditer(program))
    if len(found) != 1:
        return None
    start, end = found[0].span("store")
    return program[:start] + _NOP + program[end:]


def binary() -> str:
    """Return what to start: the mended copy, or this machine's QEMU where it looks otherwise.

    The copy lies in a ``bin`` beside links to the folders in which QEMU looks for its firmware.
    """
    original = shutil.which(BINARY)
    if not original:
        return BINARY
    path = Path(original).resolve()

    def fill(target: Path) -> None:
        program = mend(path.read_bytes())
        if program is None:
            say(f"{path}: the place that delivers an injected interrupt is not as known: as it is")
            return
        copy = target / "bin" / BINARY
        copy.parent.mkdir()
        copy.write_bytes(program)
        copy.chmod(0o755)
        for name in ("share", "lib"):
            (target / name).symlink_to(path.parents[1] / name)

    copy = artefact(AREA, "qemu", [path, Path(__file__)], fill) / "bin" / BINARY
    return str(copy) if copy.exists() else original
