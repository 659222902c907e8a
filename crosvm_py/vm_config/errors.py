# SPDX-License-Identifier: BSD-3-Clause
"""The one error that a configuration from a stranger can cause."""

from __future__ import annotations

from sys_util.errors import ConfigError


class SchemaError(ConfigError):
    """A JSON text or an option does not fit the schema.

    ``place`` is the key, such as ``disks[0].queue_size``, or the option and its key; it is "" for
    the whole text. ``reason`` says what is wrong with it.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}" if place else reason)
        self.place = place
        self.reason = reason
