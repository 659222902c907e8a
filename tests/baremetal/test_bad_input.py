# SPDX-License-Identifier: BSD-3-Clause
"""What cannot be is refused with a line that names it, before anything of a VM exists."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from crosvm_py.exit_status import VmExit
from tests.guests.baremetal.build import build_guest
from tests.kernel_loader.images import Elf, Load, bzimage
from tests.support.warm import run_warm

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
POLICIES = ROOT / "seccomp" / "x86_64"
PATIENCE_SECONDS = 120
ERROR, USAGE = VmExit.ERROR, VmExit.USAGE
TEXT = 0x100_0000
LONG_PATH = "/tmp/" + "s" * 120


def make_kernels(folder: Path) -> None:
    made = {
        "empty": b"",
        "text": b"#!/bin/sh\necho this is no kernel, but a long enough text\n" * 20,
        "random": bytes(range(256)) * 8,
        "header": Elf().build()[:30],
        "cut": Elf().build()[:-20],
        "elf32": Elf(elf_class=1).build(),
        "arm": Elf(machine=183).build(),
        "object": Elf(elf_type=1).build(),
        "nothing": Elf(loads=[]).build(),
        "overlap": Elf(loads=[Load(), Load(gpa=TEXT + 0x10)]).build(),
        "outside": Elf(loads=[Load(gpa=0x4000_0000)], entry=0x4000_0000).build(),
        "entry": Elf(entry=TEXT + 0x10_0000).build(),
        "huge": Elf(loads=[Load(size_bytes=1 << 40)]).build(),
        "corrupt": bzimage(b"\x1f\x8b\x08" + bytes(range(200))),
        "cut-bz": bzimage(b"\x1f\x8b\x08" + bytes(range(200)))[:0x300],
        "old-bz": bzimage(b"x", version=0x100),
    }
    for name, content in made.items():
        (folder / name).write_bytes(content)


def make_disks(folder: Path) -> None:
    (folder / "odd.img").write_bytes(bytes(500))
    (folder / "good.img").write_bytes(bytes(8192))
    with open(folder / "big.img", "wb") as file:
        file.truncate(100 << 20)
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()


def make_policies(folder: Path) -> None:
    bad_lines = {
        "no-rng": "",
        "garbage": "this is no policy",
        "unknown": "no_such_call: 1",
        "argument": "read: arg9 == 1",
        "include": "@include nowhere.policy",
        "number": "read: arg0 == 0x",
    }
    for name, line in bad_lines.items():
        shutil.copytree(POLICIES, folder / name)
        policy = folder / name / "rng_device.policy"
        policy.write_text(policy.read_text() + line + "\n")
    (folder / "no-rng" / "rng_device.policy").unlink()
    (folder / "none").mkdir()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every run of this file has its good and its bad files."""
    path = tmp_path_factory.mktemp("bad")
    shutil.copy(build_guest("hello", tmp_path_factory.mktemp("guests")), path / "vmlinux")
    for make in (make_kernels, make_disks, make_policies):
        make(path)
    return path


@pytest.fixture(params=[[], ["--dry-run"]], ids=["run", "dry-run"])
def mode(request: pytest.FixtureRequest) -> list[str]:
    """Both a run and its rehearsal, which has to meet the same errors."""
    words: list[str] = request.param
    return words


def run(
    folder: Path, words: list[str], *, wrapper: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    words = ["--extended-status", "run", *words]
    if not wrapper:
        return run_warm(*words, cwd=folder)
    return subprocess.run(
        [*wrapper, sys.executable, "-m", "crosvm_py", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


# Warnings that have nothing to do with what is refused.
_ASIDES = ("no hardware virtualization", "seccomp cache")


def assert_refused(done: subprocess.CompletedProcess[str], status: int, words: str) -> None:
    assert re.search(words, done.stderr), done.stderr
    assert done.returncode == status
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if not any(word in line for word in _ASIDES)]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("crosvm: ")


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ("missing", r"kernel missing: No such file"),
        ("folder", r"folder: a folder without guest.conf is no guest \(crosvm guest make"),
        ("fifo", r"kernel fifo: is not a regular file"),
        ("empty", r"kernel empty: is empty"),
        ("text", r"kernel text: not a kernel: a text that starts with '#!/bin/sh"),
        ("random", r"kernel random: not a kernel"),
        ("header", r"kernel header: truncated ELF header, 0x1e bytes"),
        ("cut", r"kernel cut: truncated, segment 0 needs .* of 0x"),
        ("elf32", r"kernel elf32: .*32-bit"),
        ("arm", r"kernel arm: .*(aarch64|machine|architecture)"),
        ("object", r"kernel object: .*(type|executable)"),
        ("nothing", r"kernel nothing: no program headers, nothing to load"),
        ("overlap", r"kernel overlap: .*segment.*overlap"),
        ("outside", r"kernel outside: .*0x40000000.*memory"),
        ("entry", r"kernel entry: entry .*0x1100000"),
        ("huge", r"kernel huge: .*0x10000000000.*memory"),
        ("corrupt", r"kernel corrupt: .*gzip"),
        ("cut-bz", r"kernel cut-bz: .*truncated"),
        ("old-bz", r"kernel old-bz: .*(protocol|version)"),
    ],
)
def test_kernel_that_is_none_is_named(
    folder: Path, kernel: str, words: str, mode: list[str]
) -> None:
    assert_refused(run(folder, [*mode, "-m", "64", kernel]), ERROR, words)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        pytest.param("-i missing", ERROR, "initrd missing: No such file", id="initrd missing"),
        pytest.param("-i empty", ERROR, "initrd empty: is empty", id="initrd empty"),
        pytest.param("-i folder", ERROR, "initrd folder: is a directory", id="initrd folder"),
        pytest.param(
            "-m 16 -i big.img",
            ERROR,
            r"initrd big.img: 0x6400000 bytes do not fit .* kernel of 0x\w+ bytes in 0x\w+ bytes",
            id="initrd too large",
        ),
        pytest.param(
            "-p " + "x" * 3000,
            ERROR,
            r"kernel command line: 0x\w+ bytes, kernel vmlinux takes at most 0x7ff",
            id="command line too long",
        ),
        pytest.param("-d missing", ERROR, "--disk missing: No such file", id="disk missing"),
        pytest.param("--rwdisk folder", ERROR, "--rwdisk folder: is a directory", id="folder"),
        pytest.param("-b empty", ERROR, "--block empty: is empty", id="disk empty"),
        pytest.param(
            "-r odd.img",
            ERROR,
            "--root odd.img: 500 bytes is less than one block of 512",
            id="disk odd",
        ),
        pytest.param("-d fifo", ERROR, "--disk fifo: neither a regular file", id="disk fifo"),
        pytest.param("-d /dev/null", ERROR, "--disk /dev/null: neither", id="disk null"),
        pytest.param(
            "-d good.img --rwdisk folder/../good.img",
            ERROR,
            "--rwdisk folder/../good.img: --disk good.img is the same image",
            id="twice",
        ),
        pytest.param(
            "-r good.img --rwroot good.img", ERROR, "--root: only one disk can be", id="two roots"
        ),
        pytest.param(
            "-b good.img,block-size=1000", ERROR, "block-size 1000 is not a power", id="block size"
        ),
        pytest.param("-b good.img,id=" + "a" * 21, ERROR, "id is longer than 20 bytes", id="id"),
        pytest.param("-b good.img,colour=1", USAGE, "--block: unknown key 'colour'", id="key"),
        pytest.param("-b good.img,ro=maybe", USAGE, "--block: ro='maybe'", id="value"),
        pytest.param("-b ro", USAGE, "--block: path=PATH is missing", id="path"),
        pytest.param("-m 0", ERROR, "--mem: 0 is outside the limits, 4 MiB to 4 TiB", id="no mem"),
        pytest.param("-m 3", ERROR, "--mem: 3 is outside the limits, 4 MiB to 4 TiB", id="little"),
        pytest.param("-m -5", USAGE, "--mem: .*'-5': not a number .*4 MiB to 4 TiB", id="mem < 0"),
        pytest.param("-m 5T", ERROR, "--mem: 5T is outside the limits, 4 MiB to 4 TiB", id="5T"),
        pytest.param("-m 16E", USAGE, "--mem: .*'16E': .*4 MiB to 4 TiB", id="16E"),
        pytest.param("-m abc", USAGE, "--mem: .*'abc': not a number", id="mem text"),
        pytest.param("-c 0", ERROR, r"--cpus: 0 vCPUs are not in 1\.\.254", id="no cpu"),
        pytest.param("-c 255", ERROR, r"--cpus: 255 vCPUs are not in 1\.\.254", id="cpus"),
        pytest.param("-c -1", USAGE, "--cpus: .*'-1': not a number", id="cpus < 0"),
        pytest.param("-c two", USAGE, "--cpus: .*'two': not a number", id="cpus text"),
        pytest.param("--nonsense", USAGE, "unknown option --nonsense", id="option"),
        pytest.param("another", USAGE, "unexpected argument 'vmlinux'", id="argument"),
        pytest.param("--serial type=weird", USAGE, "type='weird': must be one of", id="serial"),
        pytest.param(
            "--serial type=file,path=nowhere/x", ERROR, "path=nowhere/x: No such", id="serial path"
        ),
    ],
)
def test_option_that_cannot_be_is_named(
    folder: Path, options: str, status: int, words: str, mode: list[str]
) -> None:
    before = sorted(folder.rglob("*"))
    sizes = [path.stat().st_size for path in before]
    assert_refused(run(folder, [*mode, *options.split(" "), "vmlinux"]), status, words)
    assert sorted(folder.rglob("*")) == before  # nothing was created, nothing truncated
    assert [path.stat().st_size for path in before] == sizes


@pytest.mark.parametrize(
    ("policies", "words"),
    [
        ("missing", "policy missing/rng_device.policy does not exist"),
        ("none", "policy none/rng_device.policy does not exist"),
        ("no-rng", "policy no-rng/rng_device.policy does not exist"),
        ("garbage", r"garbage/rng_device.policy:\d+: .*this"),
        ("unknown", r"unknown/rng_device.policy:\d+: unknown system call 'no_such_call'"),
        ("argument", r"argument/rng_device.policy:\d+: arguments are arg0 to arg5, not 'arg9'"),
        ("include", r"include/rng_device.policy:\d+: file .*nowhere.policy does not exist"),
        ("number", r"number/rng_device.policy:\d+: .*0x"),
    ],
)
def test_policy_that_is_wrong_is_named_and_no_device_runs(
    folder: Path, policies: str, words: str, mode: list[str]
) -> None:
    assert_refused(run(folder, [*mode, "--seccomp-policy-dir", policies, "vmlinux"]), ERROR, words)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("good.img", "--socket: good.img: exists and is not a socket"),
        ("fifo", "--socket: fifo: exists and is not a socket"),
        (LONG_PATH, "--socket: /tmp/s+: 125 bytes, a socket path has 107"),
        ("nowhere/vm.sock", "--socket nowhere/vm.sock: No such file"),
    ],
)
def test_socket_path_that_cannot_be_is_refused(
    folder: Path, path: str, words: str, mode: list[str]
) -> None:
    assert_refused(run(folder, [*mode, "-s", path, "vmlinux"]), ERROR, words)
    assert (folder / "good.img").stat().st_size == 8192


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_live_socket_is_refused_and_stays(
    folder: Path, tmp_path: Path, kind: int, mode: list[str]
) -> None:
    path = str(tmp_path / "live.sock")
    with socket.socket(socket.AF_UNIX, kind) as owner:
        owner.bind(path)
        if kind != socket.SOCK_DGRAM:
            owner.listen()
        assert_refused(run(folder, [*mode, "-s", path, "vmlinux"]), ERROR, "live.sock: .*in use")
        assert os.path.exists(path)


def test_stale_socket_is_taken_over(folder: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "stale.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as owner:
        owner.bind(path)
        owner.listen()
    done = run(folder, ["-m", "16", "-s", path, "vmlinux"])
    assert (done.returncode, done.stdout.strip()) == (VmExit.RESET, "hello from the guest")
    assert not os.path.exists(path)


# A host without KVM, in a mount namespace of its own.


def in_namespace(script: str) -> tuple[str, ...]:
    return ("unshare", "-m", "sh", "-ec", f'{script}; exec "$@"', "sh")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts over /dev")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        pytest.param(
            "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3",
            r"/dev/kvm .*(module|modprobe).*No such file",
            id="none",
        ),
        pytest.param("mount --bind /dev/null /dev/kvm", "/dev/kvm", id="another device"),
    ],
)
def test_host_without_kvm_is_told_and_how_to_help(folder: Path, script: str, words: str) -> None:
    assert_refused(run(folder, ["vmlinux"], wrapper=in_namespace(script)), ERROR, words)


AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_user_without_permission_is_told_and_how_to_help(folder: Path) -> None:
    make_readable(folder)
    done = run(folder, ["vmlinux"], wrapper=AS_NOBODY)
    assert_refused(done, ERROR, r"/dev/kvm .*group.*Permission denied")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["-d", "secret.img", "vmlinux"], "--disk secret.img: not readable"),
        (["--rwdisk", "shown.img", "vmlinux"], "--rwdisk shown.img: not writable"),
        (["secret.img"], "kernel secret.img: Permission denied"),
        (["-s", "vm.sock", "vmlinux"], "bind --socket vm.sock: Permission denied"),
    ],
)
def test_file_of_another_user_is_named(folder: Path, words: list[str], answer: str) -> None:
    make_readable(folder)
    for name, mode in (("secret.img", 0o600), ("shown.img", 0o644)):
        (folder / name).write_bytes(bytes(8192))
        (folder / name).chmod(mode)
    node = folder / "kvm"
    if not node.exists():
        os.mknod(node, 0o020666, os.makedev(10, 232))
        node.chmod(0o666)
    script = f"mount --bind {node} /dev/kvm"
    assert_refused(run(folder, words, wrapper=(*in_namespace(script), *AS_NOBODY)), ERROR, answer)


def make_readable(folder: Path) -> None:
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and "pytest" in str(parent):
            parent.chmod(0o755)
