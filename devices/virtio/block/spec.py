# SPDX-License-Identifier: BSD-3-Clause
"""The options of a disk, and what of them the device itself has to check."""

from __future__ import annotations

from devices.virtio.rate_limiter import RATE_LIMITS, RateLimits
from sys_util.errors import ConfigError
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U32, boolean, integer, optional, text

if TYPE_CHECKING:
    from sys_util.wire import Check

MAX_QUEUES: Final = 64
MAX_ID_BYTES: Final = 20  # virtio 1.3 §5.2.6


@fact
class BlockSpec:
    """One disk as the user asked for it. ``option`` is the option's name in messages.

    The device process gets all of it but the path; ``disk/image.py`` says what the rest is for.
    """

    TYPE: ClassVar[int] = 2
    FIELDS: ClassVar[tuple[Check, ...]] = (
        text(0),
        boolean,
        boolean,
        boolean,
        U32,
        optional(text(MAX_ID_BYTES)),
        boolean,
        boolean,
        text(32),
        RATE_LIMITS,
        integer(1, MAX_QUEUES),
        boolean,
    )
    path: str
    read_only: bool = False
    root: bool = False
    sparse: bool = True
    block_size: int = 512
    id: str | None = None
    direct: bool = False
    lock: bool = True
    option: str = "--block"
    limits: RateLimits = RateLimits()
    num_queues: int = 1
    follow: bool = True

    def id_bytes(self) -> bytes:
        """Return the 20 bytes of GET_ID: shorter ids are padded with zeros (§5.2.6).

        Raises:
            ConfigError: the id has no such form.
        """
        label = f"{self.option} {self.path}"
        try:
            encoded = (self.id or "").encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{label}: id is not UTF-8") from None
        if len(encoded) > MAX_ID_BYTES:
            raise ConfigError(f"{label}: id is longer than {MAX_ID_BYTES} bytes")
        return encoded.ljust(MAX_ID_BYTES, b"\0")
