# SPDX-License-Identifier: BSD-3-Clause
"""From the words of ``crosvm run`` to what they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crosvm_py.cli.commands.run import COMMAND
from crosvm_py.cli.grammar.options import parse
from crosvm_py.cli.run_options.run_config import build_config

if TYPE_CHECKING:
    from crosvm_py.config import RunConfig


def config_of(*words: str) -> RunConfig:
    """Return what ``crosvm run`` makes of ``words``, among them the kernel."""
    arguments = parse(words, COMMAND.options, COMMAND.positional)
    return build_config(arguments, extended_status=False)
