# SPDX-License-Identifier: BSD-3-Clause
"""``python -m crosvm_py.manual DIRECTORY``: write everything as below a prefix."""

from __future__ import annotations

import sys

from crosvm_py.manual.files import write_files

if __name__ == "__main__":
    write_files(sys.argv[1])
