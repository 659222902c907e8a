# SPDX-License-Identifier: BSD-3-Clause
"""Exits that end the VM: their status, and the line that says why."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest

from crosvm_py.exit_status import VmExit
from crosvm_py.machine.vcpu_exit import ended_by_exit
from kvm._kvm import lib
from kvm.run_page import RunPage
from tests.crosvm_py.machine.scripted_vcpu import SHUTDOWN, ScriptedVcpu, exits, play

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("step", "kind", "text"),
    [
        pytest.param(SHUTDOWN, VmExit.RESET, "vCPU 0: triple fault", id="triple-fault"),
        pytest.param(
            exits(lib.KVM_EXIT_SYSTEM_EVENT, struct.pack("<I", 1)),
            VmExit.STOPPED,
            "the guest powered off",
            id="event-shutdown",
        ),
        pytest.param(
            exits(lib.KVM_EXIT_SYSTEM_EVENT, struct.pack("<I", 2)),
            VmExit.RESET,
            "asked for a reset",
            id="event-reset",
        ),
        pytest.param(
            exits(lib.KVM_EXIT_SYSTEM_EVENT, struct.pack("<I", 3)),
            VmExit.GUEST_PANIC,
            "reported a crash",
            id="event-crash",
        ),
        pytest.param(
            exits(lib.KVM_EXIT_SYSTEM_EVENT, struct.pack("<I", 99)),
            VmExit.CRASH,
            "unknown system event 99",
            id="event-unknown",
        ),
        pytest.param(
            exits(lib.KVM_EXIT_FAIL_ENTRY, struct.pack("<Q", 0x8000_0021)),
            VmExit.CRASH,
            "refused to enter the guest, reason 0x80000021",
            id="fail-entry",
        ),
        pytest.param(
            exits(lib.KVM_EXIT_INTERNAL_ERROR, struct.pack("<IIQQ", 2, 2, 0xA, 0xB)),
            VmExit.CRASH,
            "internal error 2 (simultaneous exceptions) at 0xffff8000, data 0xa 0xb",
            id="internal",
        ),
        pytest.param(
            exits(lib.KVM_EXIT_INTERNAL_ERROR, struct.pack("<II", 77, 0xFFFF_FFFF)),
            VmExit.CRASH,
            "internal error 77 (unknown suberror)",
            id="internal-unknown",
        ),
        pytest.param(
            exits(lib.KVM_EXIT_HLT), VmExit.CRASH, "unexpected KVM_EXIT_HLT (5)", id="halt"
        ),
        pytest.param(exits(4711), VmExit.CRASH, "unexpected KVM exit (4711)", id="unknown"),
        pytest.param(
            exits(0, result=-errno.EFAULT), VmExit.CRASH, "KVM_RUN: Bad address", id="efault"
        ),
    ],
)
def test_fatal_exit_ends_the_vm_once(
    step: Callable[[memoryview], int], kind: VmExit, text: str
) -> None:
    reason, _ = play(step)
    assert reason.kind is kind
    assert text in reason.text


EMULATION_FAILED = struct.pack(
    "<IIQB15s", lib.KVM_INTERNAL_ERROR_EMULATION, 4, 1, 4, b"\x48\x0f\xc7\x0f\xcc"
)


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        pytest.param(EMULATION_FAILED, "at 0xffff8000, bytes 48 0f c7 0f", id="bytes"),
        pytest.param(struct.pack("<III", 1, 0, 0), "bytes not known", id="no-data"),
        pytest.param(struct.pack("<IIQ", 1, 3, 0), "bytes not known", id="no-flag"),
        pytest.param(
            struct.pack("<IIQB15s", 1, 4, 1, 255, b"\x90" * 15),
            "bytes " + " ".join(["90"] * 15),
            id="size-beyond-limit",
        ),
    ],
)
@pytest.mark.parametrize("hardware", [True, False], ids=["hardware", "software"])
def test_emulation_failure_names_instruction_and_host(
    payload: bytes, text: str, hardware: bool
) -> None:
    vcpu = ScriptedVcpu()
    exits(lib.KVM_EXIT_INTERNAL_ERROR, payload)(vcpu.page)
    reason = ended_by_exit(
        vcpu,
        RunPage(vcpu.page),
        lib.KVM_EXIT_INTERNAL_ERROR,
        hardware_virtualization=hardware,
    )
    assert reason.kind is VmExit.CRASH
    assert text in reason.text
    assert ("no hardware virtualization" in reason.text) is not hardware
