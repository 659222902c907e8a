# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm pool``."""

from __future__ import annotations

import os

from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Option, Positional, text_option
from sys_util.errors import ConfigError, UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

_DEFAULT_SIZE: Final = 2
_MAX_SIZE: Final = 64


def _read_size(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{option}: {text!r:.40} is no number")
    if len(text) > 6 or not 1 <= int(text) <= _MAX_SIZE:
        raise ConfigError(f"{option}: {text:.40} is outside the limits, 1 to {_MAX_SIZE}")
    return int(text)


SIZE: Final = Option(
    "--size", "N", "how many monitors wait", _read_size, default=str(_DEFAULT_SIZE)
)


PREPARE: Final = text_option(
    "--prepare",
    "KERNEL",
    "read this kernel, or that of this guest's folder, now: a run of the same file need not then",
    repeatable=True,
)


def _kernel(path: str) -> str:
    """Return the kernel that the argument of ``run`` stands for."""
    if not os.path.isdir(path):
        return path
    from crosvm_py.file_parser.guest import read_guest

    return read_guest(path).kernel


def _pool(arguments: Arguments, _settings: GlobalSettings) -> int:
    from crosvm_py.end_signals import reset_inherited_signals
    from crosvm_py.inherited import close_unused, drop_inherited
    from crosvm_py.pool.pool import run_pool
    from crosvm_py.tunables import run_without_huge_pages

    run_without_huge_pages()
    drop_inherited()
    close_unused(())
    reset_inherited_signals()
    size = arguments.get(SIZE) or _DEFAULT_SIZE
    kernels = [_kernel(path) for path in arguments.every(PREPARE)]
    run_pool(arguments.positional[0], size, kernels)
    return 0


COMMAND: Final = Command(
    "pool",
    "keep monitors started, so that crosvm run --pool PATH boots at once",
    (SIZE, PREPARE),
    (Positional("PATH", "the socket to make, in a directory of yours"),),
    _pool,
    examples=(
        "crosvm pool --size 4 --prepare bzImage $XDG_RUNTIME_DIR/crosvm-pool.sock",
        "crosvm run --pool $XDG_RUNTIME_DIR/crosvm-pool.sock -r rootfs.img vmlinux",
    ),
    details="It runs until SIGTERM, SIGINT or SIGHUP. VMs that it has started go on then. Start it "
    "again after an upgrade of the program: its monitors have the modules of before. A run is as "
    "if the user's own process had made it, but for this: I/O priority, NUMA policy and autogroup "
    "are those of the pool, and SIGSTOP, other than Ctrl-Z, stops only the client.",
)
