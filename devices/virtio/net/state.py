# SPDX-License-Identifier: BSD-3-Clause
"""The options of a network card, and the state that its driver and the user have set.

Nobody sets the state again after a restart, so it is saved for the next process. The filters that a
driver has set (receive modes, tables of addresses) are not part of it, since nothing uses them.
"""

from __future__ import annotations

from devices.virtio.net import features as bits
from devices.virtio.rate_limiter import RATE_LIMITS, RateLimits
from sys_util.errors import ConfigError, ProtocolError
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, NoReturn
from sys_util.wire import U32, blob, boolean, integer

if TYPE_CHECKING:
    from sys_util.wire import Check

MAC_BYTES: Final = 6
_GROUP_BIT: Final = 1


@fact
class NetSpec:
    """One card with what its host's end can do. Without ``tap`` that is a stream socket."""

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = (
        blob(MAC_BYTES),
        U32,
        integer(1, bits.MAX_PAIRS),
        boolean,
        boolean,
        RATE_LIMITS,
    )
    mac: bytes
    mtu: int
    pairs: int = 1
    tap: bool = True
    uso: bool = False
    limits: RateLimits = RateLimits()  # for each direction


class CardState(NamedTuple):
    """The user sets the first two; the others belong to one driver. No driver: 0 ``features``."""

    link_up: bool
    limits: RateLimits
    features: int
    mac: bytes
    announce: bool
    pairs: int
    offloads: int  # of the driver's GUEST_* features, those that are on

    @classmethod
    def fresh(cls, spec: NetSpec) -> CardState:
        """Return the state of a new card."""
        return cls(True, spec.limits, 0, spec.mac, False, 1, 0)

    @classmethod
    def unpack(cls, fields: dict[str, object], spec: NetSpec) -> CardState:
        """Check the state that an earlier process has saved, which may have been compromised.

        Raises:
            ProtocolError: no card can be in this state; it names the field.
        """
        if fields.keys() != set(cls._fields):
            _refuse("fields")
        features = _integer(fields, "features", (1 << 64) - 1)
        state = cls(
            link_up=_boolean(fields, "link_up"),
            limits=_limits(fields),
            features=features,
            mac=_mac(fields),
            announce=_boolean(fields, "announce"),
            pairs=_integer(fields, "pairs", spec.pairs),
            offloads=_integer(fields, "offloads", bits.GUEST_OFFLOADS),
        )
        if not state.pairs:
            _refuse("pairs")
        if state.offloads & ~(features & bits.GUEST_OFFLOADS):
            _refuse("offloads")
        return state

    def pack(self) -> dict[str, object]:
        """Return the fields for ``SavedState.store``."""
        return self._asdict()


def _refuse(name: str) -> NoReturn:
    raise ProtocolError(name)


def _boolean(fields: dict[str, object], name: str) -> bool:
    value = fields[name]
    if not isinstance(value, bool):
        _refuse(name)
    return value


def _integer(fields: dict[str, object], name: str, most: int) -> int:
    value = fields[name]
    if type(value) is not int or not 0 <= value <= most:
        _refuse(name)
    return value


def _mac(fields: dict[str, object]) -> bytes:
    value = fields["mac"]
    if type(value) is not bytes or len(value) != MAC_BYTES or value[0] & _GROUP_BIT:
        _refuse("mac")
    return value


def _limits(fields: dict[str, object]) -> RateLimits:
    values = fields["limits"]
    if type(values) is not list or len(values) != len(RateLimits._fields):
        _refuse("limits")
    if not all(type(value) is int for value in values):
        _refuse("limits")
    limits = RateLimits._make(values)
    try:
        limits.check()
    except ConfigError:
        _refuse("limits")
    return limits
