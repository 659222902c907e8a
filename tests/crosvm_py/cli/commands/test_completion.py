# SPDX-License-Identifier: BSD-3-Clause
"""What bash offers after ``crosvm completion bash``."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest

from crosvm_py.cli.dispatch import COMMANDS, GLOBAL_OPTIONS, execute
from crosvm_py.cli.grammar.completion import bash_completion, words_of
from sys_util.errors import UsageError

BASH = shutil.which("bash")


def offered(*words: str) -> list[str]:
    """Return what bash offers for the last of ``words``."""
    script = bash_completion("crosvm", words_of(COMMANDS, GLOBAL_OPTIONS))
    line = " ".join(shlex.quote(word) for word in ("crosvm", *words))
    script += f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _crosvm; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(
        [str(BASH), "--norc", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(BASH is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["ru"], ["run"], id="command"),
        pytest.param(["--ext"], ["--extended-status"], id="global-option"),
        pytest.param(["--no-syslog", "dev"], ["devices"], id="behind-a-global-option"),
        pytest.param(["run", "--dry"], ["--dry-run"], id="option"),
        pytest.param(["run", "-m", "512", "--se"], ["--serial", "--seccomp-policy-dir",
                     "--seccomp-log-failures"], id="behind-a-value"),
        pytest.param(["run", "vml"], [], id="file"),
        pytest.param(["run", ""], [], id="nothing-typed"),
        pytest.param(["run", "--log"], [], id="option-of-another-place"),
        pytest.param(["policy", "s"], ["show", "simulate"], id="group"),
        pytest.param(["policy", "record", "--m"], ["--merge"], id="in-a-group"),
        pytest.param(["help", "bal"], ["balloon", "balloon_stats"], id="help"),
        pytest.param(["nonsense", "--dry"], [], id="nonsense"),
    ],
)  # fmt: skip
def test_word_is_completed(words: list[str], expected: list[str]) -> None:
    assert sorted(offered(*words)) == sorted(expected)


def test_script_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["completion", "bash"]) == 0
    assert capfd.readouterr().out == bash_completion("crosvm", words_of(COMMANDS, GLOBAL_OPTIONS))


def test_other_shell_is_refused() -> None:
    reason = r"completion: 'bsh' is none of bash, zsh, fish, did you mean bash"
    with pytest.raises(UsageError, match=reason):
        execute(["completion", "bsh"])
