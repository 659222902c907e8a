# SPDX-License-Identifier: BSD-3-Clause
"""The live tests of filters and jails, run by the newer Python on the newer kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.kvmhost.fixture import KvmHost

SECONDS: Final = 240.0
PATHS: Final = ("tests/seccomp/test_live.py", "tests/jail/test_jail.py")


def test_live_tests_pass_there(kvmhost: KvmHost) -> None:
    argv = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", *PATHS]
    done = kvmhost.run(argv, cwd="/project", timeout=SECONDS)
    assert done.status == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
