# SPDX-License-Identifier: BSD-3-Clause
"""``python3 -m tests.newer_debian [PYTEST ARGUMENTS]``: unit tests on a newer Python and C library.

They run on this machine's kernel, in the tree of the second KVM test host: jails, filters, device
processes and this machine's own KVM are real. Needs root, for the tree's namespace.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.guests import newer
from tests.guests.cache import PROJECT, need_root

ENTER: Final = Path(__file__).parent / "enter.sh"
# What meets the kernel or the C library. The rest is Python that the newer version compiles, too.
DEFAULT: Final = (
    *(
        "tests/seccomp/test_live.py",
        "tests/seccomp/test_cache.py",
        "tests/jail",
        "tests/kvm",
        "tests/sys_util",
    ),
    *("tests/crosvm_py", "tests/test_startup.py"),
    # bytes alone, for iasl, which is not there
    *(
        f"--ignore=tests/crosvm_py/machine/x86_64/test_{name}.py"
        for name in ("acpi", "acpi_numa", "wdat")
    ),
    "--ignore=tests/crosvm_py/guest/test_packages.py",  # packages are made with ar, nor is that
    # words and bytes alone
    "--ignore=tests/crosvm_py/cli",
    "--ignore=tests/crosvm_py/test_borders.py",
    # the same, by libraries of which that Debian has older versions
    *(f"--ignore=tests/crosvm_py/{name}" for name in ("api", "client", "cloud_hypervisor")),
    "--ignore=tests/crosvm_py/vm_config",
    "--ignore=tests/crosvm_py/file_parser/test_files.py",
    "--ignore=tests/crosvm_py/manual",
)

# pytest's status when tests failed.
_TESTS_FAILED: Final = 1


def main(arguments: list[str]) -> int:
    """Run pytest in the tree, once more for what failed; return its status."""
    need_root("the root of a newer Debian")
    with tempfile.TemporaryDirectory(prefix="newer-debian-cache-") as cache:
        status = _pytest(["-o", f"cache_dir={cache}", *arguments])
        if status == _TESTS_FAILED:
            sys.stderr.write("newer Debian: one more try for what failed; mend it all the same\n")
            status = _pytest(["-o", f"cache_dir={cache}", "--last-failed", *arguments])
    return status


def _pytest(arguments: list[str]) -> int:
    paths = [word for word in arguments if word.startswith("tests")]
    pytest = ["python3", "-m", "pytest", *arguments]
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    words += ["sh", str(ENTER), str(newer.build().tree), str(PROJECT), *pytest]
    words += () if paths else DEFAULT
    own = {"PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_STORAGE_DIRECTORY": "/run/hypothesis"}
    return subprocess.run(words, env={**os.environ, **own}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
