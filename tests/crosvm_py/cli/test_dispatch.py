# SPDX-License-Identifier: BSD-3-Clause
"""The table of commands leads to the commands that it names."""

from __future__ import annotations

import pytest

from crosvm_py.cli.grammar.command import load_command
from tests.support.command_line import every_place


@pytest.mark.parametrize(("name", "place"), every_place())
def test_command_is_called_as_its_table_says(name: str, place: str) -> None:
    assert load_command(place).name == name
