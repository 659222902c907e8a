# SPDX-License-Identifier: BSD-3-Clause
"""Manual pages and completions have what the parsers have, in a form that their readers accept."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING

import pytest

from crosvm_py.cli.dispatch import COMMANDS, GLOBAL_OPTIONS
from crosvm_py.cli.grammar.command import load_command
from crosvm_py.cloud_hypervisor import remote
from crosvm_py.manual.files import PROGRAMS, all_files, write_files
from crosvm_py.manual.page import Page, roff
from crosvm_py.vm_config.command_line import PROGRAM
from crosvm_py.vm_config.option_help import options_with_help
from crosvm_py.vm_config.options import FLAG_HELP, FLAGS, PAYLOAD, PAYLOAD_HELP, VALUES
from tests.baremetal.vmm import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FILES = cache(all_files)


def page(name: str) -> str:
    return FILES()[f"share/man/man1/{name}.1"]


def test_every_command_has_a_page_with_every_option_and_key() -> None:
    for place in COMMANDS.values():
        command = load_command(place)
        for each in (command, *map(load_command, command.subcommands.values())):
            text = page(f"crosvm-{each.name.replace(' ', '-')}")
            for option in each.options:
                assert roff(option.name) in text
                assert all(roff(field.name) in text for field in option.fields)


def test_overview_names_every_command_and_global_option() -> None:
    text = page("crosvm")
    assert all(roff(option.name) in text for option in GLOBAL_OPTIONS)
    assert all(roff(name) in text for name in COMMANDS)


def test_pages_of_cloud_hypervisor_have_every_option_and_call() -> None:
    names = [option.name for option in options_with_help()]
    assert sorted(names) == sorted((*PROGRAM, *PAYLOAD, *FLAGS, *VALUES))
    assert all(roff(name) in page("cloud-hypervisor") for name in names)
    assert all(roff(name) in page("ch-remote") for name in remote.COMMANDS)


def test_every_option_without_keys_says_what_it_is_for() -> None:
    assert FLAG_HELP.keys() == FLAGS.keys()
    assert PAYLOAD_HELP.keys() == PAYLOAD.keys()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("--name", "\\-\\-name"),
        (".B bold", "\\&.B bold"),
        ("'quoted'", "\\&'quoted'"),
        ("a\\b", "a\\eb"),
        ("two\n  lines", "two lines"),
        ("µs …", "[u00B5]s ..."),
    ],
)
def test_text_has_no_meaning_for_roff(text: str, written: str) -> None:
    assert roff(text) == written.replace("[u", "\\[u")


def test_page_has_its_parts_in_order() -> None:
    one = Page("x-y", "do it")
    one.section("OPTIONS")
    one.entry('-a "b"', "what it does")
    lines = one.finish(("x-y", "x"))
    assert lines.splitlines()[1:] == [
        *(".SH NAME", "x\\-y \\- do it", ".SH OPTIONS", ".TP", '.B "\\-a \\(dqb\\(dq"'),
        *("what it does", ".SH SEE ALSO", ".BR x (1)"),
    ]


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="no mandoc")
def test_mandoc_has_no_complaint(tmp_path: Path) -> None:
    write_files(str(tmp_path))
    pages = sorted(tmp_path.glob("share/man/man1/*.1"))
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *pages], capture_output=True, text=True
    )
    assert done.stdout + done.stderr == ""


@pytest.mark.skipif(shutil.which("man") is None, reason="no man")
def test_groff_has_no_complaint(tmp_path: Path) -> None:
    path = tmp_path / "crosvm-run.1"
    path.write_text(page("crosvm-run"))
    done = subprocess.run(
        ["man", "--warnings", "-l", path],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
    )
    assert done.stderr == ""
    assert "boot a virtual machine" in done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", "share/bash-completion/completions/{}"),
        ("zsh", "share/zsh/site-functions/_{}"),
        ("fish", "share/fish/vendor_completions.d/{}.fish"),
    ],
)
def test_shell_can_read_its_script(program: str, shell: str, place: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    script = tmp_path / "script"
    script.write_text(FILES()[place.format(program)])
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("crosvm ru", "run\tboot a virtual machine"),
        ("crosvm guest ma", "make\t"),
        ("crosvm run --dry", "--dry-run\t"),
        ("crosvm -", "--log-level\t"),
        ("ch-remote po", "power-button\tpress the power button"),
        ("cloud-hypervisor --ev", "--event-monitor\twrite events there"),
    ],
)
def test_fish_offers(line: str, offered: str, tmp_path: Path) -> None:
    program = line.partition(" ")[0]
    script = tmp_path / "script.fish"
    script.write_text(FILES()[f"share/fish/vendor_completions.d/{program}.fish"])
    command = f"source {script}; complete -C '{line}'"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["fish", "-N", "-c", command], capture_output=True, text=True, check=True, env=environment
    )
    assert any(found.startswith(offered) for found in done.stdout.splitlines())


ZSH_PROBE = """
compdef() {{ }}
_files() {{ print -r -- FILES }}
_describe() {{ print -r -l -- ${{(P)@[-1]}} }}
source {script}
words=({words}); CURRENT=$#words; PREFIX=$words[-1]
_crosvm
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("crosvm ru", "run:boot a virtual machine"),
        ("crosvm guest ma", "make:"),
        ("crosvm --no-syslog run -", "--dry-run:"),
        ("crosvm run ''", "FILES"),
    ],
)
def test_zsh_offers(words: str, offered: str, tmp_path: Path) -> None:
    script = tmp_path / "_crosvm"
    script.write_text(FILES()["share/zsh/site-functions/_crosvm"])
    probe = ZSH_PROBE.format(script=script, words=words)
    done = subprocess.run(["zsh", "-f", "-c", probe], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert any(found.startswith(offered) for found in done.stdout.splitlines())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_knows_every_line_of_the_unit(tmp_path: Path) -> None:
    unit = (ROOT / "systemd" / "crosvm@.service").read_text()
    program = tmp_path / "crosvm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    instance = tmp_path / "crosvm@vm1.service"
    unit = unit.replace("ExecStart=crosvm", f"ExecStart={program}")
    instance.write_text("".join(f"{line}\n" for line in unit.splitlines() if "man:" not in line))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", instance], capture_output=True, text=True
    )
    assert [line for line in done.stderr.splitlines() if "crosvm@vm1" in line] == []
