# SPDX-License-Identifier: BSD-3-Clause
"""The balloon's options of ``crosvm run``."""

from __future__ import annotations

import pytest

from devices.virtio.balloon.device import BalloonSpec
from sys_util.errors import ConfigError, UsageError
from tests.support.command_line import config_of

MIB = 1 << 20


def balloon_of(*words: str) -> BalloonSpec | None:
    return config_of(*words, "vmlinux").balloon


@pytest.mark.parametrize(
    ("words", "spec"),
    [
        pytest.param([], None, id="none"),
        pytest.param(["--no-balloon"], None, id="forbidden"),
        pytest.param(["--balloon", "0"], BalloonSpec(), id="empty"),
        pytest.param(["--balloon", "64m"], BalloonSpec(64 * MIB), id="size"),
        pytest.param(["--balloon=size=8192"], BalloonSpec(8192), id="bytes"),
        pytest.param(
            ["--balloon", "size=1m,deflate_on_oom=off,free_page_reporting=on"],
            BalloonSpec(MIB, deflate_on_oom=False, page_reporting=True),
            id="cloud-hypervisor",
        ),
        pytest.param(["--balloon", "0,deflate-on-oom=false"], BalloonSpec(0, False), id="no-oom"),
        pytest.param(["--balloon-page-reporting"], BalloonSpec(0, True, True), id="reporting"),
        pytest.param(
            ["--balloon", "1m", "--balloon_page_reporting"], BalloonSpec(MIB, True, True), id="both"
        ),
        pytest.param(["--balloon", "256m"], BalloonSpec(256 * MIB), id="all-memory"),
    ],
)
def test_balloon_options(words: list[str], spec: BalloonSpec | None, lines: list[str]) -> None:
    assert balloon_of(*words) == spec
    assert lines == []


def test_balloon_larger_than_the_memory_is_made_smaller_and_said(lines: list[str]) -> None:
    assert balloon_of("-m", "128", "--balloon", "1g") == BalloonSpec(128 * MIB)
    assert lines == ["--balloon: 1024 MiB is more than the memory of 128 MiB, which it becomes"]


@pytest.mark.parametrize(
    ("words", "error", "reason"),
    [
        (["--balloon", "100"], ConfigError, "--balloon: 100 bytes is not a multiple of 4096"),
        (["--balloon", "-1"], UsageError, "--balloon: "),
        (["--balloon", "1m,deflate_on_oom=maybe"], UsageError, "must be true, false, on or off"),
        (["--balloon", "1m,bubbles"], UsageError, "unknown key 'bubbles'"),
        (["--balloon", "99999999t"], UsageError, "more bytes than 64 bits"),
        (["--balloon", "0", "--no-balloon"], ConfigError, "--no-balloon and --balloon exclude"),
        (
            ["--no-balloon", "--balloon-page-reporting"],
            ConfigError,
            "--no-balloon and --balloon-page-reporting exclude",
        ),
    ],
)
def test_balloon_options_that_make_no_sense(
    words: list[str], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        balloon_of(*words)
