# SPDX-License-Identifier: BSD-3-Clause
"""Wait for what another process sends."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sys_util.channel import Channel
    from sys_util.wire import Message

# Everything takes well below a second; the rest is for a machine that is busy.
PATIENCE_SECONDS: Final = 60.0


def receive(channel: Channel) -> tuple[Message, list[int]]:
    """Return the next message on a channel, with its descriptors.

    Raises:
        ChannelClosed: the other side has ended.
    """
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        assert poll.poll(PATIENCE_SECONDS * 1000), "nothing came"
        received = channel.receive()
        if received is not None:
            return received
