# SPDX-License-Identifier: BSD-3-Clause
"""The supervision of device processes: ``--device-restart`` and ``--device-timeout``."""

from __future__ import annotations

from crosvm_py.care import ALWAYS, DEFAULT_LIMIT, DEFAULT_TIMEOUT_SECONDS, NEVER, Rate
from crosvm_py.cli.grammar.options import Option, OptionGroup
from sys_util.errors import ConfigError, UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.care import RestartLimit
    from crosvm_py.cli.grammar.options import Arguments

_MAX_RESTARTS: Final = 1_000_000
_MIN_SECONDS: Final = 1.0
_MAX_SECONDS: Final = 86400.0

_PER_MINUTE: Final = "/minute"
_MINUTE_SECONDS: Final = 60.0

_WORDS: Final = {"always": ALWAYS, "never": NEVER}


class _Restarts:
    """Holds a limit, because ``None`` means both ``ALWAYS`` and an option that was not given."""

    def __init__(self, limit: RestartLimit) -> None:
        self.limit = limit


def _read_restarts(option: str, text: str) -> _Restarts:
    if text in _WORDS:
        return _Restarts(_WORDS[text])
    digits = text.removesuffix(_PER_MINUTE)
    if not (digits.isascii() and digits.isdigit()):
        wanted = f"always, never, a number or a number and {_PER_MINUTE}"
        raise UsageError(f"{option}: {text!r:.40} is none of {wanted}")
    if int(digits[:12]) > _MAX_RESTARTS or len(digits) > 12:
        raise ConfigError(f"{option}: {text:.40} is more than {_MAX_RESTARTS}")
    restarts = int(digits)
    return _Restarts(restarts if digits == text else Rate(restarts, _MINUTE_SECONDS))


def _read_timeout(option: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise UsageError(f"{option}: {text!r:.40} is no number of seconds") from None
    if not _MIN_SECONDS <= seconds <= _MAX_SECONDS:  # refuses NaN, too
        limits = f"{_MIN_SECONDS:.0f} to {_MAX_SECONDS:.0f} seconds"
        raise ConfigError(f"{option}: {text:.40} is outside the limits, {limits}")
    return seconds


RESTARTS: Final = Option(
    "--device-restart",
    "always|never|N|N/minute",
    "how often a device whose process fails gets a new one; after that the device is lost to "
    "the guest. never: the VM ends instead",
    _read_restarts,
    default=f"{DEFAULT_LIMIT.restarts}{_PER_MINUTE}",
)
TIMEOUT: Final = Option(
    "--device-timeout",
    "SECONDS",
    "end a device process that answers nothing, or serves no queue, for so long",
    _read_timeout,
    default=f"{DEFAULT_TIMEOUT_SECONDS:g}",
)
GROUP: Final = OptionGroup(
    "Devices that fail",
    (RESTARTS, TIMEOUT),
    examples=("crosvm run --device-restart 3 -r rootfs.img vmlinux",),
)


def restarts(arguments: Arguments) -> RestartLimit:
    """Return how often each device may be restarted."""
    given = arguments.get(RESTARTS)
    return DEFAULT_LIMIT if given is None else given.limit


def timeout_seconds(arguments: Arguments) -> float:
    """Return how long a device process may hang."""
    return arguments.get(TIMEOUT) or DEFAULT_TIMEOUT_SECONDS
