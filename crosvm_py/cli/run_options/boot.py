# SPDX-License-Identifier: BSD-3-Clause
"""Options of the boot, beside the kernel itself: its parameters and the initrd."""

from __future__ import annotations

from crosvm_py.cli.grammar.options import OptionGroup, text_option
from sys_util.typing import Final

PARAMS: Final = text_option(
    "-p --params",
    "TEXT",
    "append TEXT to the kernel's command line; may be repeated",
    repeatable=True,
)
INITRD: Final = text_option("-i --initrd", "PATH", "initial RAM disk")

GROUP: Final = OptionGroup(
    "Kernel",
    (PARAMS, INITRD),
    examples=('crosvm run -i initrd.img -p "root=/dev/ram0 quiet" bzImage',),
)
