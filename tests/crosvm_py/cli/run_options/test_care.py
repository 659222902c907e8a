# SPDX-License-Identifier: BSD-3-Clause
"""``--device-restart`` and ``--device-timeout``: every spelling, and wrong ones."""

from __future__ import annotations

import pytest

from crosvm_py.care import ALWAYS, DEFAULT_LIMIT, NEVER, Rate, RestartLimit
from sys_util.errors import ConfigError, UsageError
from tests.support.command_line import config_of


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        pytest.param([], DEFAULT_LIMIT, id="default"),
        pytest.param(["--device-restart", "10/minute"], DEFAULT_LIMIT, id="default-as-typed"),
        pytest.param(["--device-restart=always"], ALWAYS, id="always"),
        pytest.param(["--device-restart=never"], NEVER, id="never"),
        pytest.param(["--device-restart=3"], 3, id="number"),
        pytest.param(["--device-restart=3/minute"], Rate(3, 60.0), id="rate"),
    ],
)
def test_restart_limit_is_read(words: list[str], limit: RestartLimit) -> None:
    assert config_of(*words, "vmlinux").device_restarts == limit


@pytest.mark.parametrize("text", ["", "often", "-1", "1.5", "/minute", "3/hour", "3 / minute", "٣"])
def test_restart_limit_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"--device-restart: .* is none of always, never, a number"
    ):
        config_of(f"--device-restart={text}", "vmlinux")


@pytest.mark.parametrize("text", ["1000001", "1000001/minute", "9" * 5000])
def test_restart_limit_beyond_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is more than 1000000"):
        config_of(f"--device-restart={text}", "vmlinux")
