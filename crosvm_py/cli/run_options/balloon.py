# SPDX-License-Identifier: BSD-3-Clause
"""The balloon on the command line of ``run``: crosvm's switches and Cloud Hypervisor's keys.

crosvm gives every VM a balloon. Our balloon is a process, which takes time to start and memory, so
a VM gets one only if the user asks for it.
"""

from __future__ import annotations

from crosvm_py.cli.grammar import keyvalue
from crosvm_py.cli.grammar.options import Option, OptionGroup, switch
from sys_util.errors import ConfigError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.options import Arguments
    from crosvm_py.cli.grammar.scanner import Scanner
    from devices.virtio.balloon.device import BalloonSpec

PAGE_BYTES: Final = 4096

log = get_logger("crosvm.run")

_WORDS: Final = {"true": True, "on": True, "false": False, "off": False}


def _read_switch(scanner: Scanner) -> bool:
    word = scanner.word()
    if word not in _WORDS:
        raise ValueError("must be true, false, on or off")
    return _WORDS[word]


def _flag(name: str, help: str, *, default: bool) -> keyvalue.Field[bool]:  # noqa: A002
    shown = keyvalue.typed_bool(default)
    return keyvalue.Field(name, _read_switch, default, "true|false", help, shown=shown)


_SIZE: Final = keyvalue.size(
    "size", "memory that it takes at the start, in bytes or with a suffix", 0
)
_OOM: Final = _flag(
    "deflate-on-oom", "the guest takes memory back before it kills a process", default=True
)
_REPORTING: Final = _flag(
    "free-page-reporting", "the guest gives free memory back by itself", default=False
)
_FIELDS: Final = (_SIZE, _OOM, _REPORTING)


def _read_balloon(option: str, text: str) -> BalloonSpec:
    from devices.virtio.balloon.device import BalloonSpec

    values = keyvalue.parse(option, text, _FIELDS)
    if values[_SIZE] % PAGE_BYTES:
        raise ConfigError(f"{option}: {values[_SIZE]} bytes is not a multiple of {PAGE_BYTES}")
    return BalloonSpec(values[_SIZE], values[_OOM], values[_REPORTING])


BALLOON: Final = Option(
    "--balloon",
    "SIZE[,KEY=VALUE…]",
    "a balloon, which crosvm balloon inflates later; most often of size 0 at the start",
    _read_balloon,
    fields=_FIELDS,
)
REPORTING: Final = switch(
    "--balloon-page-reporting",
    "the same as --balloon 0,free-page-reporting=true, or added to a --balloon",
)
NO_BALLOON: Final = switch("--no-balloon", "no balloon; that is the default")
GROUP: Final = OptionGroup(
    "Memory balloon, which gives memory of the guest back to the host",
    (BALLOON, REPORTING, NO_BALLOON),
    examples=("crosvm run --balloon 0 -s vm.sock … ; crosvm balloon 2g vm.sock",),
)


def balloon(arguments: Arguments, memory_bytes: int) -> BalloonSpec | None:
    """Return the balloon that the user asked for, at most as large as the guest's memory.

    Raises:
        ConfigError: options both ask for a balloon and forbid it.
    """
    spec = arguments.get(BALLOON)
    wanted = [option.name for option in (BALLOON, REPORTING) if arguments.has(option)]
    if not wanted:
        return None
    if arguments.has(NO_BALLOON):
        raise ConfigError(f"--no-balloon and {wanted[0]} exclude each other")
    from devices.virtio.balloon.device import BalloonSpec

    spec = spec or BalloonSpec()
    size_bytes = min(spec.size_bytes, memory_bytes)
    if size_bytes < spec.size_bytes:
        log.warning(
            "--balloon: %d MiB is more than the memory of %d MiB, which it becomes",
            spec.size_bytes >> 20,
            memory_bytes >> 20,
        )
    reporting = spec.page_reporting or arguments.has(REPORTING)
    return BalloonSpec(size_bytes, spec.deflate_on_oom, reporting)
