# SPDX-License-Identifier: BSD-3-Clause
"""Rate limits on the command line: Cloud Hypervisor's keys, for each device that has limits."""

from __future__ import annotations

from crosvm_py.cli.grammar import keyvalue
from devices.virtio.rate_limiter import RateLimits
from sys_util.errors import ConfigError
from sys_util.typing import Final

_NO_LIMIT: Final = "0, no limit"

_BW_SIZE: Final = keyvalue.size(
    "bw-size", "bytes that may pass in bw-refill-time", 0, shown=_NO_LIMIT
)
_BW_BURST: Final = keyvalue.size("bw-one-time-burst", "bytes that may pass before that, once", 0)
_BW_TIME: Final = keyvalue.integer("bw-refill-time", "milliseconds for bw-size bytes", 0, shown="")
_OPS_SIZE: Final = keyvalue.integer(
    "ops-size", "requests that may pass in ops-refill-time", 0, shown=_NO_LIMIT
)
_OPS_BURST: Final = keyvalue.integer(
    "ops-one-time-burst", "requests that may pass before that, once", 0
)
_OPS_TIME: Final = keyvalue.integer(
    "ops-refill-time", "milliseconds for ops-size requests", 0, shown=""
)

# In the order of RateLimits.
FIELDS: Final = (_BW_SIZE, _BW_BURST, _BW_TIME, _OPS_SIZE, _OPS_BURST, _OPS_TIME)


def limits(option: str, values: keyvalue.Values) -> RateLimits:
    """Return the limits among ``values``.

    Raises:
        ConfigError: the limits make no sense together.
    """
    for size, time in ((_BW_SIZE, _BW_TIME), (_OPS_SIZE, _OPS_TIME)):
        for given, missing in ((size, time), (time, size)):
            if given in values and missing not in values:
                raise ConfigError(f"{option}: {given.name} needs {missing.name}")
    made = RateLimits(*(values[field] for field in FIELDS))
    try:
        made.check()
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None
    return made


def given_limits(option: str, text: str) -> tuple[int | None, ...]:
    """Return the new value of each limit; ``None`` for those that are not in ``text``.

    Raises:
        UsageError: ``text`` cannot be read.
    """
    values = keyvalue.parse(option, text, FIELDS)
    named = {field.name: values[field] for field in FIELDS if field in values}
    return tuple(named.get(field.name) for field in FIELDS)
