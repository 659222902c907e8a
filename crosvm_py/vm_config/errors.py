# SPDX-License-Identifier: BSD-3-Clause
"""The errors that a configuration can cause."""

from __future__ import annotations

from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.vm_config.problem import Problem


class SchemaError(ConfigError):
    """A JSON text or an option does not fit the schema: the one error that a stranger can cause.

    ``place`` is the key, such as ``disks[0].queue_size``, or the option and its key; it is "" for
    the whole text. ``reason`` says what is wrong with it.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}" if place else reason)
        self.place = place
        self.reason = reason


class UnfitConfigError(ConfigError):
    """A configuration that fits the schema and cannot run here, and why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message())
        self.problem = problem
