# SPDX-License-Identifier: BSD-3-Clause
"""All files that belong below the prefix of an installation beside the programs."""

from __future__ import annotations

import os

from crosvm_py.manual.ch_pages import ch_pages
from crosvm_py.manual.completions import completions
from crosvm_py.manual.crosvm_pages import crosvm_pages
from crosvm_py.manual.page import SECTION
from sys_util.typing import Final

PROGRAMS: Final = ("crosvm", "cloud-hypervisor", "ch-remote")


def all_files() -> dict[str, str]:
    """Return the text of every file by its path below the prefix."""
    pages = crosvm_pages() | ch_pages()
    files = {f"share/man/man{SECTION}/{name}.{SECTION}": text for name, text in pages.items()}
    for program in PROGRAMS:
        files |= completions(program)
    return files


def write_files(prefix: str) -> None:
    """Write every file below ``prefix``, which is made where it is not there."""
    for name, text in all_files().items():
        path = os.path.join(prefix, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
