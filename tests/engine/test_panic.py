# SPDX-License-Identifier: BSD-3-Clause
"""A panic of the engine: it says where, and ends the process as any of our bugs does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crosvm_py.device_process.protocol import VMM_CODEC
from sys_util.child_log import CRASHED_HEAD, Crashed

pytest.importorskip("engine._engine", reason="the engine is not built")

# A region that wraps around cannot be: adding its size to its address overflows in memory.rs.
PANIC = """
import sys
from engine import native
from engine._engine import ffi, lib
from seccomp import load_policy
from sys_util import linux

regions = ffi.new("struct crosvm_region[]", 1)
held = ffi.from_buffer("uint8_t[]", bytearray(8192))
regions[0].gpa, regions[0].size_bytes, regions[0].base = 2**64 - 4096, 8192, held
memory = lib.crosvm_engine_memory(regions, 1, ffi.NULL, 0)
layout = ffi.new("struct crosvm_layout *", (2**64 - 4096, 0x1000, 0x2000, 8, False, False))
position = ffi.new("struct crosvm_position *", (0, 0, 0, 0, False))
native.report_panics(1, bytes.fromhex(sys.argv.pop(1)))
filters = [load_policy(name).bpf for name in sys.argv[1:]]
linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
for bpf in filters:
    linux.load_seccomp_filter(bpf)
lib.crosvm_engine_block_queue(memory, layout, position, -1, -1)
raise SystemExit("it goes on")
"""


@pytest.mark.parametrize(
    "policies",
    [
        pytest.param([], id="free"),
        pytest.param(["warden", "block_device"], id="under the filters of a disk"),
    ],
)
def test_panic_says_where_and_ends_the_process(policies: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PANIC, CRASHED_HEAD.hex(), *policies],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    log = done.stderr.decode()
    assert done.returncode == os.EX_SOFTWARE
    assert re.match(
        r"engine: panicked at src/memory\.rs:\d+:\d+:\nattempt to add with overflow\n", log
    )
    assert VMM_CODEC.decode(done.stdout) == Crashed(log.removesuffix("\n"))
