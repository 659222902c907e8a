# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm policy`` as a user meets it: words, exit statuses, one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from crosvm_py.cli.commands.policy_names import policy_name, policy_names
from crosvm_py.cli.commands.policy_simulate import EXIT_DENIED, EXIT_NO_POLICY
from crosvm_py.cli.dispatch import COMMANDS, execute
from crosvm_py.kinds.table import DEVICE_KINDS
from seccomp.syscalls import ARCHITECTURES
from sys_util.errors import ConfigError, UsageError
from tests.baremetal.vmm import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.policy").write_text("read: 1\nwrite: arg2 == 8\n")
    (tmp_path / "bad.policy").write_text("reed: 1\n")
    (tmp_path / "rng_device.policy").write_text("getrandom: 1\n")
    (tmp_path / "common_x.policy").write_text("read: 1\n")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("block", "block_device"),
        ("block:3", "block_device"),
        ("vhost-net", "vhost_net_device"),
        ("vhost-net:0", "vhost_net_device"),
        ("rng_device", "rng_device"),
        ("vmm", "vmm"),
    ],
)
def test_device_is_named_by_kind_or_number_or_policy(words: str, name: str) -> None:
    assert policy_name(words, None) == name


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("blockk", "no device or policy 'blockk', did you mean block?"),
        ("block:x", "no device or policy 'block:x', did you mean block?"),
        ("../vmm", r"no device or policy '\.\./vmm', did you mean vmm\?"),
        ("common_device", "no device or policy 'common_device'"),
        ("", "no device or policy ''$"),
    ],
)
def test_unknown_device_is_named(words: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        policy_name(words, None)


def test_every_device_has_a_policy_for_every_architecture() -> None:
    for arch in ARCHITECTURES:
        assert {kind.policy_name for kind in DEVICE_KINDS.values()} <= set(policy_names(None, arch))


def test_directory_is_listed_without_its_parts(own: str) -> None:
    assert policy_names(own) == ["bad", "own", "rng_device"]


def test_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policies of .*nowhere"):
        policy_names(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_show_tells_one_policy(arch: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["policy", "show", "rng", "--arch", arch]) == 0
    text = capfd.readouterr().out
    assert text.startswith(f"rng_device ({arch}, built in: rng_device.policy, common_device")
    assert "getrandom" in text


def test_show_tells_all(capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["policy", "show"]) == 0
    out = capfd.readouterr().out
    assert all(f"{name} (" in out for name in policy_names(None))


def test_show_tells_a_device_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["policy", "show", "block:0", "block_device", "block:1"]) == 0
    out = capfd.readouterr().out
    assert out.count("block_device (") == 1


def test_show_speaks_to_programs(capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["policy", "show", "rng", "vmm", "--json"]) == 0
    out = capfd.readouterr().out
    found = json.loads(out)
    assert [each["policy"] for each in found] == ["rng_device", "vmm"]


def test_show_reads_a_directory(own: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["policy", "show", "rng", "own", "--policy-dir", own]) == 0
    out = capfd.readouterr().out
    assert f"rng_device (x86_64, from {own}: rng_device.policy)" in out
    assert "allows 1 system call;" in out


def test_show_obeys_no_control_characters(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a\x1b[2Jb.policy").write_text("read: 1\n")
    assert execute(["policy", "show", "--policy-dir", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["rng", "getrandom", "0", "16", "0"], 0, "getrandom(0, 16, 0): allowed\n"),
        (["rng", "getrandom", "0", "16", "1"], EXIT_DENIED, "denied, trapped: the call"),
        (["rng", "openat"], EXIT_DENIED, "denied, answered with ENOENT, and not carried out"),
        (["vmm", "ioctl", "3", "KVM_IRQFD"], 0, "ioctl(3, KVM_IRQFD): allowed"),
        (["rng", "--", "lseek", "-1"], EXIT_DENIED, "no rule names this call"),
        (["rng", "--arch", "aarch64", "epoll_pwait"], 0, "epoll_pwait(): allowed"),
    ],
)
def test_simulate_tells_what_happens(
    words: list[str], status: int, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert execute(["policy", "simulate", *words]) == status
    out = capfd.readouterr().out
    assert text in out


def test_simulate_names_file_and_line(own: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["policy", "simulate", "own", "write", "1", "0", "8", "--policy-dir", own]) == 0
    told = f"write(1, 0, 8): allowed\n  {own}/own.policy:2: write: arg2 == 8\n"
    assert capfd.readouterr().out == told


def test_simulate_of_a_wrong_policy_is_no_verdict(
    own: str, capfd: pytest.CaptureFixture[str]
) -> None:
    status = execute(["policy", "simulate", "bad", "read", "--policy-dir", own])
    assert status == EXIT_NO_POLICY
    told = f"crosvm: policy simulate: {own}/bad.policy:1: unknown system call 'reed'\n"
    assert capfd.readouterr() == ("", told)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["policy"], "policy: a command is missing: record, show, simulate"),
        (["policy", "sho"], "unknown command 'policy sho', did you mean show?"),
        (["policy", "show", "rngg"], "policy show: no device or policy 'rngg', did you mean rng?"),
        (["policy", "show", "--arch", "mips"], "--arch: 'mips' is none of x86_64, aarch64"),
        (["policy", "record", "rng"], "policy record: -- RUN ARGUMENTS is missing"),
        (["policy", "record", "rng", "--", "k"], "policy record: -o DIR is missing"),
        (["policy", "record", "-o", "d", "--", "k"], "policy record: DEVICE is missing"),
        (
            ["policy", "record", "rngg", "-o", "d", "--", "k"],
            "device or policy 'rngg', did you mean",
        ),
        (["policy", "record", "rng", "-o", "d", "--", "run"], "record: run: KERNEL is missing"),
        (["policy", "record", "rng", "-o", "d", "--", "-x"], "record: run: unknown option -x"),
        (["policy", "record", "rng", "-o", "d", "--", "-h"], "crosvm run --help tells"),
        (["policy", "simulate", "rng"], "policy simulate: SYSCALL is missing"),
        (["policy", "simulate", "rng", "rread"], "policy simulate: unknown system call 'rread'"),
        (["policy", "simulate", "rng", "read", "KVM_RUM"], "did you mean KVM_RUN?"),
        (["policy", "simulate", "rng", "read", *"1234567"], "unexpected argument '7'"),
    ],
)
def test_words_that_cannot_be_read_are_named(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        execute(words)


def test_warden_is_not_recorded() -> None:
    with pytest.raises(ConfigError, match="the warden's policy holds for devices, too"):
        execute(["policy", "record", "warden", "-o", "d", "--", "k"])


def test_rehearsal_is_not_recorded() -> None:
    with pytest.raises(ConfigError, match="with --dry-run nothing runs"):
        execute(["policy", "record", "rng", "-o", "d", "--", "--dry-run", "k"])


@pytest.mark.parametrize(
    "words",
    [
        ["help", "policy", "simulate"],
        ["policy", "simulate", "--help"],
        ["policy", "simulate", "-h", "x"],
    ],
)
def test_help_of_a_command_of_two_words(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert execute(words) == 0
    out = capfd.readouterr().out
    assert out.startswith("usage: crosvm policy simulate [OPTIONS] DEVICE SYSCALL [ARG…]\n")
    assert "0 for allowed, 1 for denied" in " ".join(out.split())


@pytest.mark.parametrize("words", [["help", "policy"], ["policy", "--help"]])
def test_help_of_a_group_lists_its_commands(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert execute(words) == 0
    out = capfd.readouterr().out
    assert all(f"  policy {verb} " in out for verb in ("record", "show", "simulate"))


def test_overview_lists_the_commands_of_groups(capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["help"]) == 0
    out = capfd.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert "  policy simulate DEVICE SYSCALL [ARG…]\n" in out


def test_simulate_imports_nothing_of_a_vm() -> None:
    script = (
        "import sys; from crosvm_py.cli.dispatch import execute; "
        "execute(['policy', 'simulate', 'rng', 'read']); "
        "sys.exit(bool({'crosvm_py.vmm.vm', 'kvm._kvm', 'argparse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == 0
