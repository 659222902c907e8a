# SPDX-License-Identifier: BSD-3-Clause
"""The README's table of Cloud Hypervisor's API says of every endpoint what the code does."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from crosvm_py.api import absent
from crosvm_py.api.routes import CREATABLE, FIXED
from crosvm_py.vm_config.command_line import PROGRAM
from crosvm_py.vm_config.schema import VmConfig

README = Path(__file__).parents[3] / "README.md"
REFUSED = "refused (500)"
_REFUSERS = (absent.no_device.__name__, absent.not_yet.__name__)


def rows() -> dict[str, str]:
    """Return the table: the names of the first column, and what is said of them."""
    lines = README.read_text().splitlines()
    begin = lines.index("| endpoint | what of it is here |") + 2
    found: dict[str, str] = {}
    for line in lines[begin:]:
        if not line.startswith("|"):
            break
        names, said = (cell.strip() for cell in line.strip("|").split(" | ", 1))
        found |= dict.fromkeys(re.findall(r"[a-z_.*-]+\.[a-z*-]+|`[^`]+`", names), said)
    return found


def is_always_refused(name: str) -> bool:
    return all(
        routes[name].steps.__qualname__.startswith(_REFUSERS) for routes in (FIXED, CREATABLE)
    )


def said_of(name: str) -> str:
    """Return what the table says of an endpoint: its own row, or that of its pattern."""
    table = rows()
    patterns = [each for each in table if "*" in each and fnmatchcase(name, each)]
    assert name in table or patterns, f"README says nothing of {name}"
    return table.get(name) or table[patterns[0]]


# vm.resize-zone has steps of its own, whatever they come to.
@pytest.mark.parametrize("name", [name for name in CREATABLE if name != "vm.resize-zone"])
def test_table_says_of_each_endpoint_whether_it_is_refused(name: str) -> None:
    assert (said_of(name) == REFUSED) == is_always_refused(name)


def test_table_names_nothing_that_is_not_there() -> None:
    for name in rows():
        if "*" in name:
            assert any(fnmatchcase(each, name) for each in CREATABLE)
        elif name.startswith("`"):
            key = name.strip("`").partition(".")[0]
            assert key in VmConfig.__struct_fields__ or key in PROGRAM or key.startswith("pci_")
        else:
            assert name in CREATABLE
