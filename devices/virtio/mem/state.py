# SPDX-License-Identifier: BSD-3-Clause
"""What a process of virtio-mem saves for the next one, and how that one checks it."""

from __future__ import annotations

from sys_util.errors import ProtocolError
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Pending(NamedTuple):
    """A request of the driver for some ``blocks``, of the kind ``VIRTIO_MEM_REQ_…``."""

    kind: int
    first: int
    blocks: int

    @property
    def end(self) -> int:
        """The block behind the last one."""
        return self.first + self.blocks


def read_saved(
    fields: Mapping[str, object], blocks: int, block_bytes: int, most_kind: int
) -> tuple[int, Pending | None]:
    """Return the requested size, and the request that the vmm was asked to carry out, if any.

    Raises:
        ProtocolError: no healthy process of a device with so many blocks saves that.
    """
    requested, pending = fields.get("requested"), fields.get("pending")
    if type(requested) is not int or not 0 <= requested <= blocks * block_bytes:
        raise ProtocolError(f"requested size {brief(requested)}")
    if pending == []:
        return requested, None
    if type(pending) is not list or [type(value) for value in pending] != [int, int, int]:
        raise ProtocolError(f"request {brief(pending)}")
    found = Pending(*pending)
    if not (0 <= found.kind <= most_kind and 0 <= found.first < found.end <= blocks):
        raise ProtocolError(f"request {brief(pending)}")
    return requested, found
