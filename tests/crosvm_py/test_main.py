# SPDX-License-Identifier: BSD-3-Clause
"""The program as a user meets it: output, the one line of an error, exit statuses."""

from __future__ import annotations

import configparser
import errno
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import msgpack
import pytest

from crosvm_py.__main__ import main
from crosvm_py.cli.dispatch import COMMANDS, GLOBAL_OPTIONS
from crosvm_py.config import RunConfig
from crosvm_py.exit_status import VmExit, exit_status
from crosvm_py.version import VERSION
from sys_util import log
from sys_util.errors import HostError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _restore_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_filter", log.Filter(log.INFO))
    monkeypatch.setattr(log, "_sink", log.stderr_sink)


class Cli:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        self.out = ""
        self.err = ""

    def run(self, *words: str) -> int:
        self._monkeypatch.setattr(sys, "argv", ["crosvm", *words])
        status = main()
        self.out, self.err = self._capfd.readouterr()
        return status

    def vm_ends_with(self, result: VmExit | BaseException) -> None:
        def run_vm(config: RunConfig, _syslog: object = None) -> VmExit:
            if isinstance(result, BaseException):
                raise result
            return result

        module = ModuleType("crosvm_py.run")
        self._monkeypatch.setattr(module, "run_vm", run_vm, raising=False)
        self._monkeypatch.setitem(sys.modules, "crosvm_py.run", module)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capfd)


@pytest.mark.parametrize("word", ["version", "--version", "-V"])
def test_version_prints_name_and_number(cli: Cli, word: str) -> None:
    assert cli.run(word) == 0
    assert cli.out == f"crosvm-py {VERSION}\n"


def test_version_is_the_one_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == VERSION


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--extended-status", "--help"]])
def test_help_lists_commands_and_global_options(cli: Cli, words: list[str]) -> None:
    assert cli.run(*words) == 0
    assert cli.err == ""
    for word in [*COMMANDS, *(option.name for option in GLOBAL_OPTIONS)]:
        assert word in cli.out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        pytest.param(
            [], "crosvm: a command is missing, such as run; crosvm --help lists them", id="nothing"
        ),
        pytest.param(["rnu"], "crosvm: unknown command 'rnu', did you mean run?", id="command"),
        pytest.param(["run"], "crosvm: run: KERNEL is missing", id="kernel"),
        pytest.param(["stop"], "crosvm: stop: SOCKET is missing", id="socket"),
        pytest.param(["version", "x"], "crosvm: version: unexpected argument 'x'", id="version"),
        pytest.param(
            ["--log-level", "loud", "run"],
            "crosvm: --log-level: 'loud' is no level (off, error, warn, info, debug)",
            id="log-level",
        ),
        pytest.param(
            ["run", "--extended-status", "k"],
            "crosvm: run: --extended-status goes before the command: "
            "crosvm --extended-status run …",
            id="behind-the-command",
        ),
        pytest.param(
            ["--mem", "512", "run", "k"],
            "crosvm: --mem is an option of run and goes behind it: crosvm run --mem …",
            id="before-the-command",
        ),
        pytest.param(
            ["--no-sysloog", "run", "k"],
            "crosvm: unknown option --no-sysloog, did you mean --no-syslog?",
            id="near-a-global-one",
        ),
        pytest.param(
            ["run", "--x\x1b[2J\n"], "crosvm: run: unknown option --x\\x1b[2J\\n", id="escape"
        ),
    ],
)
def test_bad_command_line_gives_one_line_and_35(cli: Cli, words: list[str], line: str) -> None:
    assert cli.run(*words) == 35
    assert cli.err == line + "\n"
    assert cli.out == ""


def test_impossible_request_gives_one_line_and_1(cli: Cli) -> None:
    assert cli.run("run", "-c", "0", "k") == 1
    assert cli.err == "crosvm: --cpus: 0 vCPUs are not in 1..254\n"


def test_host_refusal_gives_cause_and_1(cli: Cli) -> None:
    error = HostError("open", "/dev/kvm", "join the group kvm")
    error.__cause__ = PermissionError(13, "Permission denied")
    cli.vm_ends_with(error)
    assert cli.run("--no-syslog", "run", "k") == 1
    assert cli.err == "crosvm: open /dev/kvm (join the group kvm): Permission denied\n"


def test_refusal_that_nobody_expected_names_what_was_tried_and_the_remedy(cli: Cli) -> None:
    cli.vm_ends_with(OSError(errno.EMFILE, "Too many open files", "/dev/null"))
    assert cli.run("--no-syslog", "run", "k") == 1
    tried = "Cli.vm_ends_with.<locals>.run_vm of crosvm_py/test_main.py, /dev/null"
    reason = "Too many open files (ulimit -n raises the limit on open files)"
    assert cli.err == f"crosvm: the host refuses a system call ({tried}): {reason}\n"


def test_bug_of_ours_gives_traceback_in_the_log_and_70(cli: Cli) -> None:
    cli.vm_ends_with(ZeroDivisionError("ours"))
    assert cli.run("--no-syslog", "run", "k") == 70
    assert "ERROR crosvm] internal error, please report it" in cli.err
    assert cli.err.endswith("ERROR crosvm] ZeroDivisionError: ours\n")


def test_interrupt_gives_130_and_no_traceback(cli: Cli) -> None:
    cli.vm_ends_with(KeyboardInterrupt())
    assert cli.run("--no-syslog", "run", "k") == 130
    assert cli.err == ""


@pytest.mark.parametrize(
    ("vm_exit", "plain", "extended"),
    [
        (VmExit.STOPPED, 0, 0),
        (VmExit.ERROR, 1, 1),
        (VmExit.RESET, 0, 32),
        (VmExit.CRASH, 33, 33),
        (VmExit.GUEST_PANIC, 1, 34),
        (VmExit.WATCHDOG, 1, 36),
    ],
)
def test_end_of_the_vm_becomes_the_exit_status(
    cli: Cli, vm_exit: VmExit, plain: int, extended: int
) -> None:
    cli.vm_ends_with(vm_exit)
    assert cli.run("--no-syslog", "run", "k") == plain
    assert cli.run("--no-syslog", "--extended-status", "run", "k") == extended
    assert exit_status(vm_exit, extended=True) == extended


@pytest.mark.parametrize("name", ["stop", "suspend", "resume", "powerbtn"])
def test_control_commands_name_every_socket_that_fails(cli: Cli, name: str, tmp_path: Path) -> None:
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    assert cli.run(name, first, second) == 1
    assert [line.split()[:5] for line in cli.err.splitlines()] == [
        ["crosvm:", f"{name}:", "connect", "to", first],
        ["crosvm:", f"{name}:", "connect", "to", second],
    ]


def test_closed_stdout_is_no_error() -> None:
    script = "import sys; from crosvm_py.__main__ import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", script, "--help"], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        if process.stdout is not None:
            process.stdout.close()
        assert process.wait() == 0


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_closed_standard_descriptor_is_not_reused(fd: int) -> None:
    script = f"""
import os, sys
os.close({fd})
sys.argv = ["crosvm", "nothing"]
from crosvm_py.__main__ import main
sys.exit(main() != 35 or os.readlink("/proc/self/fd/{fd}") != "/dev/null")
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=False)
    assert run.returncode == 0


def _modules_of(statement: str) -> set[str]:
    """Return what a fresh interpreter has imported, without what an editable install adds."""
    packages = Path(msgpack.__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys\n{statement}\nprint(*sys.modules)"],
        cwd=ROOT,
        env={"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "module", ["crosvm_py.cli.commands.control", "crosvm_py.cli.commands.version"]
)
def test_small_commands_do_not_import_the_machine(module: str) -> None:
    heavy = {"jail", "seccomp", "kernel_loader", "argparse", "logging", "json"}
    heavy |= {"devices.bus", "devices.virtio.device", "sys_util.guest_memory"}
    assert _modules_of(f"import crosvm_py.__main__, {module}") & heavy == set()


def test_run_command_line_imports_no_heavy_module() -> None:
    heavy = {"argparse", "logging", "json", "asyncio", "subprocess", "pathlib", "difflib"}
    assert _modules_of("import crosvm_py.__main__, crosvm_py.cli.commands.run") & heavy == set()
