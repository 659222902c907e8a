# SPDX-License-Identifier: BSD-3-Clause
"""The policies for 64-bit Arm must allow the calls that were recorded there (record_aarch64.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from seccomp import load_policy
from seccomp.actions import ALLOW, Action
from seccomp.simulate import simulate
from seccomp.syscalls import AUDIT_ARCH_AARCH64
from tests.seccomp.calls import read_call

RECORD: Final = Path(__file__).parent / "recorded_aarch64.txt"
LINES: Final = [line for line in RECORD.read_text().splitlines() if not line.startswith("#")]
# The calls of every device are checked with the balloon's policy, which adds only holes to them.
COMMON: Final = {"common_device": "balloon_device"}
PATHS: Final = ("newfstatat", "readlinkat", "faccessat", "openat", "getcwd")


@pytest.mark.parametrize("line", LINES)
def test_recorded_call_is_allowed(line: str) -> None:
    whose, _, text = line.partition(": ")
    call = read_call(text, "aarch64")
    bpf = load_policy(COMMON.get(whose, whose), arch="aarch64").bpf
    names_a_path = whose == "common_device" and text.startswith(PATHS)
    expected = Action("errno", 2) if names_a_path else ALLOW
    assert simulate(bpf, call.number, call.args, AUDIT_ARCH_AARCH64) == expected


def test_record_has_the_work_of_every_process_that_needs_no_device() -> None:
    whose = {line.partition(":")[0].removesuffix("_device") for line in LINES}
    assert whose == {
        *("common", "balloon", "block", "console", "net", "rng", "vmm", "vsock", "vsock_broker")
    }
