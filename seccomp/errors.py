# SPDX-License-Identifier: BSD-3-Clause
"""The error of a policy that cannot be used."""

from __future__ import annotations

from sys_util.errors import ConfigError


class PolicyError(ConfigError):
    """A policy cannot be read, parsed or compiled. The text has ``file:line``, where known."""
