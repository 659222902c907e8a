# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.compiled PATHS…``: compile the sources, and the tests there as pytest does.

Thousands of processes start in a run of the tests. Those of another user, or in a jail, cannot keep
what they compile, and pytest's workers would each compile all tests at the same time. And each of
them would read the constants out of all sources, from which hypothesis makes up examples: it keeps
them at the first test of its, so we run one.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Final

from tests.kvmhost.host import SOURCES

if TYPE_CHECKING:
    from collections.abc import Sequence

WITH_EXAMPLES: Final = "test_parse_any_quoted_string_comes_back"


def main(paths: Sequence[str]) -> int:
    """Compile all of it; return 1 and print what was said if one does not compile."""
    collect = ("pytest", "-q", "-p", "no:cacheprovider", "-k", WITH_EXAMPLES, *paths)
    for words in (("compileall", "-q", *SOURCES), collect):
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
