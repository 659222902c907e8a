# SPDX-License-Identifier: BSD-3-Clause
"""The version of the program; it is here so that ``crosvm version`` reads no metadata."""

from __future__ import annotations

from sys_util.typing import Final

VERSION: Final = "0.1.0"
VERSION_LINE: Final = f"crosvm-py {VERSION}\n"
