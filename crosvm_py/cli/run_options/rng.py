# SPDX-License-Identifier: BSD-3-Clause
"""virtio-rng on the command line: ``--no-rng`` removes it, ``--rng`` sets its limits."""

from __future__ import annotations

from crosvm_py.cli.grammar import keyvalue
from crosvm_py.cli.grammar.options import Option, OptionGroup, switch
from crosvm_py.cli.run_options.limits import FIELDS, limits
from devices.virtio.rng.device import RngSpec
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.options import Arguments


def _read_rng(option: str, text: str) -> RngSpec:
    return RngSpec(limits=limits(option, keyvalue.parse(option, text, FIELDS)))


RNG: Final = Option(
    "--rng",
    "KEY=VALUE…",
    "limit how fast the guest may take entropy",
    _read_rng,
    fields=FIELDS,
)
NO_RNG: Final = switch("--no-rng", "give the guest no entropy device (virtio-rng)")
GROUP: Final = OptionGroup(
    "Entropy", (RNG, NO_RNG), examples=("crosvm run --rng ops-size=50,ops-refill-time=100 …",)
)


def rng(arguments: Arguments) -> RngSpec | None:
    """Return the device to make, if any.

    Raises:
        ConfigError: both ``--rng`` and ``--no-rng`` are given.
    """
    spec = arguments.get(RNG)
    if not arguments.has(NO_RNG):
        return spec or RngSpec()
    if spec is not None:
        raise ConfigError("--rng and --no-rng exclude each other")
    return None
