# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm resize``: give a running VM another number of vCPUs, or other sizes."""

from __future__ import annotations

from crosvm_py.cli.commands.asking import SOCKET, ask_for
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Option
from crosvm_py.cli.grammar.scanner import parse_number, parse_size
from crosvm_py.config import MAX_CPUS, MAX_MEMORY_BYTES
from crosvm_py.control.socket_client import ControlError
from crosvm_py.requests.resize import Resize, Resized
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments


def _read_cpus(option: str, text: str) -> int:
    try:
        cpus = parse_number(text)
    except ValueError as error:
        raise UsageError(f"{option}: {text!r:.40}: {error}") from None
    if not 1 <= cpus <= MAX_CPUS:
        raise UsageError(f"{option}: {cpus} vCPUs are not in 1..{MAX_CPUS}")
    return cpus


def _read_size(option: str, text: str) -> int:
    try:
        size_bytes = parse_size(text, 1)
    except ValueError as error:
        raise UsageError(f"{option}: {text!r:.40}: {error}") from None
    if size_bytes > MAX_MEMORY_BYTES:
        raise UsageError(f"{option}: {text:.40} is more than {MAX_MEMORY_BYTES >> 40} TiB")
    return size_bytes


CPUS: Final = Option(
    "--cpus",
    "N",
    "number of vCPUs, up to the max of run --cpus; the guest is asked to let go of those that are "
    "too many",
    _read_cpus,
)
MEMORY: Final = Option(
    "--memory", "SIZE", "memory: bytes, or a number with a suffix k, m, g or t", _read_size
)
BALLOON: Final = Option(
    "--balloon", "SIZE", "how much of it the balloon takes, in the same form", _read_size
)


def _resize(arguments: Arguments, _settings: GlobalSettings) -> int:
    (path,) = arguments.positional
    sizes = [arguments.get(option) for option in (CPUS, MEMORY, BALLOON)]
    if sizes == [None, None, None]:
        raise UsageError("resize: --cpus, --memory or --balloon is missing")
    if ask_for(path, Resize(*sizes), Resized).is_busy:
        raise ControlError(f"{path}: the guest has not yet let go of vCPUs as it was asked before")
    return 0


COMMAND: Final = Command(
    "resize",
    "change how many vCPUs and how much memory a VM has, as far as it allows that",
    (CPUS, MEMORY, BALLOON),
    (SOCKET,),
    _resize,
    examples=("crosvm resize --balloon 512m vm.sock",),
)
