# SPDX-License-Identifier: BSD-3-Clause
"""Where vCPUs are, found without stopping them, for people who look for the cause of a hang.

We must not ask KVM about a vCPU in the guest: the ioctl would wait until it leaves the guest, and a
signal that makes it leave could hide the hang by waking a guest that has missed a wake-up. So we
ask Python in which function each thread is, and KVM only about a paused vCPU.
"""

from __future__ import annotations

import os

from crosvm_py.requests.debug import MAX_PLACE_CHARS, VcpuPlace
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

    from crosvm_py.machine.vcpu import VcpuLook, VcpuSet

_FRAMES: Final = 4
_FOLDERS: Final = 2

# KVM_GET_MP_STATE on x86, from <linux/kvm.h>.
_MP_STATES: Final = {
    0: "runnable",
    1: "waits for INIT",
    2: "has taken INIT, waits for SIPI",
    3: "halted: waits for an interrupt",
    4: "has taken SIPI",
}


def find_places(vcpus: VcpuSet) -> tuple[VcpuPlace, ...]:
    """Return where each vCPU is. Call it in the thread that pauses and resumes vCPUs."""
    return tuple(
        VcpuPlace(look.vcpu.index, look.thread_id, *_find_place(look)) for look in vcpus.look()
    )


def _find_place(look: VcpuLook) -> tuple[str, str]:
    if look.spare:
        return "spare", ""
    if look.held:
        state = look.vcpu.mp_state()
        return "held", _MP_STATES.get(state, f"KVM_MP_STATE {state}")
    if look.frame is None:
        return "ended", ""
    if look.frame.f_code is type(look.vcpu).run.__code__:
        return "guest", ""
    names: list[str] = []
    frame: FrameType | None = look.frame
    while frame is not None and len(names) < _FRAMES:
        path = os.sep.join(frame.f_code.co_filename.split(os.sep)[-_FOLDERS:])
        names.append(f"{frame.f_code.co_name} ({path}:{frame.f_lineno})")
        frame = frame.f_back
    return "exit", ", called by ".join(names)[:MAX_PLACE_CHARS]
