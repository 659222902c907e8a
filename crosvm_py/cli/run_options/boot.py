# SPDX-License-Identifier: BSD-3-Clause
"""What boots, beside the kernel itself."""

from __future__ import annotations

from crosvm_py.cli.grammar.options import text_option
from sys_util.typing import Final

PARAMS: Final = text_option(
    "-p --params", "TEXT", "append to the kernel command line", repeatable=True
)
INITRD: Final = text_option("-i --initrd", "PATH", "initial RAM disk")
