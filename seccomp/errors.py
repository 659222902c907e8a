# SPDX-License-Identifier: BSD-3-Clause
"""What is wrong with a policy."""

from __future__ import annotations

from sys_util.errors import ConfigError


class PolicyError(ConfigError):
    """A policy cannot be read, parsed or compiled. Says ``file:line`` and the word, where known."""
