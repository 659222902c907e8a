# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm run``: from words to RunConfig."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosvm_py.cli.run_options.run_config import OPTIONS
from crosvm_py.config import RunConfig, SerialSpec, disk_name
from devices.virtio.block.spec import BlockSpec
from devices.virtio.rng.device import RngSpec
from sys_util.errors import ConfigError, UsageError
from tests.support.command_line import config_of

MIB = 1 << 20
CONSOLE = SerialSpec("stdout", num=1, console=True, stdin=True)
SINKS = tuple(SerialSpec("sink", num=num) for num in (2, 3, 4))


def test_run_kernel_alone_gives_the_defaults() -> None:
    assert config_of("vmlinux") == RunConfig(
        kernel="vmlinux",
        params=(),
        cpus=1,
        memory_bytes=256 * MIB,
        initrd=None,
        disks=(),
        serial=(CONSOLE, *SINKS),
        rng=RngSpec(),
        socket=None,
        name="crosvm",
        seccomp_policy_dir=None,
        seccomp_log_failures=False,
        sandbox=True,
        extended_status=False,
    )


def test_run_every_plain_option_reaches_its_field() -> None:
    made = config_of(
        *["-p", "quiet", "--params=ro", "-c", "4", "-m", "1g", "-i", "initrd", "-s", "/run/s"],
        *["--no-rng", "--name", "web", "--seccomp-policy-dir", "/p", "--seccomp-log-failures"],
        *["--disable-sandbox", "-u", "--cgroup", "none", "bzImage"],
    )
    assert made.params == ("quiet", "ro")
    assert (made.cpus, made.memory_bytes) == (4, 1024 * MIB)
    assert (made.initrd, made.socket, made.name) == ("initrd", "/run/s", "web")
    assert (made.rng, made.sandbox, made.seccomp_log_failures) == (None, False, True)
    assert (made.seccomp_policy_dir, made.cgroup, made.kernel) == ("/p", "none", "bzImage")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("64", True), ("64,thp", True), ("thp=false", False), ("size=1g,thp=false", False)],
)
def test_run_memory_has_huge_pages_unless_refused(text: str, *, wanted: bool) -> None:
    assert config_of("-m", text, "k").huge_pages is wanted


def test_run_memory_can_grow_to_its_max() -> None:
    made = config_of("-m", "256,max=1g", "-s", "x.sock", "k")
    assert (made.memory_bytes, made.hotplug_bytes) == (256 << 20, 768 << 20)
    assert config_of("-m", "256,max=256", "k").hotplug_bytes == 0


def test_run_memory_can_be_of_a_pool_and_taken_at_the_start() -> None:
    made = config_of("-m", "256,hugepages,prefault", "k")
    assert (made.pool_page_bytes, made.prefault) == (2 << 20, True)
    assert config_of("-m", "2g,hugepages,hugepage-size=1g", "k").pool_page_bytes == 1 << 30
    assert (config_of("k").pool_page_bytes, config_of("k").prefault) == (0, False)


def test_run_memory_grows_as_its_method_says() -> None:
    made = config_of("-m", "256,max=1g,hotplug-method=virtio-mem", "-s", "x.sock", "k")
    assert made.has_virtio_mem
    assert not config_of("-m", "256,max=1g", "-s", "x.sock", "k").has_virtio_mem
    assert not config_of("-m", "256,hotplug-method=virtio-mem", "k").has_virtio_mem


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("256,hugepage-size=2m", "hugepage-size needs hugepages"),
        ("256,hugepages,hugepage-size=3m", "is not a power of two"),
        ("256,hugepages,max=512", "hugepages and max exclude each other"),
        ("256,max=128", "max is less than the size"),
        ("256,max=300", "differ by 44 MiB, which is not a multiple of 128 MiB"),
        ("256,max=8t", "max is outside the limits"),
        ("256,max=384", "max needs --socket or --api-socket"),
    ],
)
def test_run_memory_that_cannot_grow_so_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        config_of("-m", text, "k")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), None),
        (("--core-scheduling", "true"), True),
        (("--core-scheduling=false",), False),
    ],
)
def test_run_core_scheduling_is_as_asked_for(words: tuple[str, ...], wanted: bool | None) -> None:
    assert config_of(*words, "vmlinux").core_scheduling is wanted


def test_run_core_scheduling_is_true_or_false() -> None:
    with pytest.raises(UsageError, match="--core-scheduling: 'yes' is neither true nor false"):
        config_of("--core-scheduling=yes", "vmlinux")


def test_run_vcpus_may_share_cores_with_one_another() -> None:
    assert config_of("--per-vm-core-scheduling", "vmlinux").per_vm_core_scheduling
    with pytest.raises(ConfigError, match="--per-vm-core-scheduling: there is none with"):
        config_of("--per-vm-core-scheduling", "--core-scheduling=false", "vmlinux")


def test_run_disks_keep_their_order_and_spelling() -> None:
    made = config_of(
        *["-d", "a", "--rwdisk", "b", "--rwroot", "c", "--block", "path=d,ro,id=x", "--disk=e"],
        "vmlinux",
    )
    assert made.disks == (
        BlockSpec("a", read_only=True, option="--disk"),
        BlockSpec("b", option="--rwdisk"),
        BlockSpec("c", root=True, option="--rwroot"),
        BlockSpec("d", read_only=True, id="x"),
        BlockSpec("e", read_only=True, option="--disk"),
    )


@pytest.mark.parametrize(
    ("words", "parameter"),
    [
        pytest.param(["-r", "a"], "root=/dev/vda ro", id="root"),
        pytest.param(["--rwroot", "a"], "root=/dev/vda rw", id="rwroot"),
        pytest.param(["-d", "a", "--block", "b,ro,root"], "root=/dev/vdb ro", id="block"),
        pytest.param(["-d", "a"], None, id="none"),
    ],
)
def test_run_root_parameter_names_the_disk(words: list[str], parameter: str | None) -> None:
    assert config_of(*words, "k").root_parameter() == parameter


@pytest.mark.parametrize(("index", "name"), [(0, "vda"), (25, "vdz"), (26, "vdaa"), (701, "vdzz")])
def test_disk_name_counts_as_linux_does(index: int, name: str) -> None:
    assert disk_name(index) == name


def test_run_block_reads_every_key() -> None:
    text = "a.img,ro,root,sparse=false,block-size=4096,id=data,o_direct,lock=false"
    assert config_of("--block", text, "k").disks == (
        BlockSpec(
            "a.img",
            read_only=True,
            root=True,
            sparse=False,
            block_size=4096,
            id="data",
            direct=True,
            lock=False,
        ),
    )


def test_run_two_disks_with_one_id_are_warned_of(lines: list[str]) -> None:
    made = config_of("--block", "a,id=x", "--block", "b,id=x", "--block", "c", "--block", "d", "k")
    assert len(made.disks) == 4
    assert lines == ["--block: two disks have id=x; a guest that looks for it finds one"]


def test_run_serial_on_other_ports_keeps_com1_as_console() -> None:
    made = config_of("--serial", "type=file,path=log,num=2", "k")
    assert made.serial == (
        SerialSpec("file", num=2, path="log"),
        CONSOLE,
        SerialSpec("sink", num=3),
        SerialSpec("sink", num=4),
    )


def test_run_serial_console_elsewhere_makes_com1_a_sink() -> None:
    made = config_of("--serial", "type=stdout,num=2,console,stdin", "k")
    assert made.serial[1:] == tuple(SerialSpec("sink", num=num) for num in (1, 3, 4))


def test_run_serial_stdin_elsewhere_is_not_taken_by_com1() -> None:
    made = config_of("--serial", "type=sink,num=2,stdin", "k")
    assert made.serial[1] == SerialSpec("stdout", num=1, console=True, stdin=False)


def test_run_serial_virtio_console_stands_beside_the_com_ports() -> None:
    made = config_of("--serial", "pty,hardware=virtio-console,num=1,console,name=main.0", "k")
    assert made.serial[0] == SerialSpec("pty", "virtio-console", console=True, name="main.0")
    assert made.serial[1:] == tuple(SerialSpec("sink", num=num) for num in (1, 2, 3, 4))


def test_run_serial_unix_stream_may_be_read() -> None:
    made = config_of("--serial", "type=unix-stream,path=s,input-unix-stream", "k")
    assert made.serial[0] == SerialSpec("unix-stream", path="s", input_unix_stream=True)


def test_run_serial_debugcon_is_no_com_port() -> None:
    made = config_of("--serial", "type=file,hardware=debugcon,path=log,debugcon_port=0xe9", "k")
    assert made.serial[0] == SerialSpec("file", "debugcon", path="log", debugcon_port=0xE9)
    assert made.serial[1:] == (CONSOLE, *SINKS)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param(["-m", "16E"], "--mem: .*'16E'.*4 MiB to 4 TiB", id="mem-64-bits"),
        pytest.param(["-m", "-1"], "--mem: .*'-1': not a number.*4 MiB to 4 TiB", id="mem-minus"),
        pytest.param(["-m", "lots"], "--mem: .*not a number", id="mem-word"),
        pytest.param(["-m", ""], "--mem: size: a value is missing", id="mem-empty"),
        pytest.param(["-m", "64", "-m", "65"], "--mem: given twice", id="mem-twice"),
        pytest.param(["-m", "size=1,swap=2"], "--mem: unknown key 'swap'", id="mem-key"),
        pytest.param(["-c", "-1"], r"--cpus: .*'-1': not a number \(1 to 254", id="cpus-minus"),
        pytest.param(["-c", "two"], "--cpus: .*'two': not a number", id="cpus-word"),
        pytest.param(["--block", ""], "--block: path: a value is missing", id="block-empty"),
        pytest.param(["--block", "a,rw"], "--block: unknown key 'rw'", id="block-key"),
        pytest.param(["-r", "a,root"], "--root: unknown key 'root'", id="root-key"),
        pytest.param(["-d", "a,ro=false"], "--disk: unknown key 'ro'", id="disk-key"),
        pytest.param(["--serial", "stdout,num=x"], "--serial: num='x'", id="serial-num"),
        pytest.param(["--serial", "type=tty"], "--serial: type='tty': must be", id="serial-type"),
        pytest.param(
            ["--serial", "num=1"],
            r"--serial: type=stdout\|file\|.* is missing",
            id="serial-no-type",
        ),
        pytest.param(["--socket="], "--socket: the value is empty", id="socket-empty"),
        pytest.param(["k2"], "unexpected argument 'k'; KERNEL is 'k2'", id="two-kernels"),
    ],
)
def test_run_text_that_cannot_be_read_raises(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        config_of(*words, "k")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param(["-m", "0"], "--mem: 0 is outside the limits, 4 MiB to 4 TiB", id="mem-0"),
        pytest.param(["-m", "5t"], "--mem: 5t is outside the limits, 4 MiB to 4 TiB", id="mem-5t"),
        pytest.param(["-m", "15e"], "--mem: 15e is outside the limits", id="mem-15e"),
        pytest.param(["-m", "8193k"], "--mem: 8193k is not a multiple of 4096", id="mem-odd"),
        pytest.param(["-c", "0"], r"--cpus: 0 vCPUs are not in 1\.\.254", id="cpus-0"),
        pytest.param(["-c", "255"], r"--cpus: 255 vCPUs are not in 1\.\.254", id="cpus-255"),
        pytest.param(["-r", "a", "--rwroot", "b"], "only one disk can be the root, got a and b"),
        pytest.param(["--disk=x"] * 27, "--block: 27 disks are above the limit of 26", id="disks"),
        pytest.param(
            ["-s", "/run/./x", "--vsock", "3,socket=/run/x"],
            "--socket and --vsock: both are to make a socket at /run/x",
            id="one-path-for-two-sockets",
        ),
        pytest.param(["--serial", "sink,num=5"], r"num=5 is not in 1\.\.4", id="serial-5"),
        pytest.param(["--serial", "sink,num=0"], r"num=0 is not in 1\.\.4", id="serial-0"),
        pytest.param(["--serial", "file"], "type=file needs path=", id="serial-file"),
        pytest.param(["--serial", "unix,path=''"], "type=unix needs path=", id="serial-unix"),
        pytest.param(["--serial", "sink,path=x"], "type=sink takes no path=", id="serial-path"),
        pytest.param(["--serial", "sink,input=x,stdin"], "input= and stdin", id="serial-input"),
        pytest.param(["--serial", "sink,hardware=debugcon,console"], "debugcon can be no console"),
        pytest.param(["--serial", "sink,hardware=debugcon,stdin"], "debugcon has no input"),
        pytest.param(
            ["--serial", "sink,hardware=debugcon,debugcon-port=0x3f9"], "0x3f9 is another device's"
        ),
        pytest.param(
            ["--serial", "sink,hardware=debugcon,debugcon-port=65536"], "0x10000 is not in"
        ),
        pytest.param(["--serial", "sink", "--serial", "stdout"], "COM1 is configured twice"),
        pytest.param(["--serial", "pty,path=x"], "type=pty takes no path=", id="pty-path"),
        pytest.param(["--serial", "pty,stdin"], "a pty is the input too", id="pty-stdin"),
        pytest.param(["--serial", "unix-stream"], "type=unix-stream needs path=", id="stream"),
        pytest.param(
            ["--serial", "sink,input-unix-stream"], "is for type=unix-stream", id="stream-input"
        ),
        pytest.param(
            ["--serial", "unix-stream,path=s,input-unix-stream,stdin"],
            "other input exclude each other",
            id="stream-stdin",
        ),
        pytest.param(["--serial", "sink,name=x"], "only a virtio-console has", id="com-name"),
        *(
            pytest.param(["--serial", f"sink,hardware=virtio-console,{keys}"], reason, id=keys[:20])
            for keys, reason in (
                ("num=0", r"num=0 is not in 1\.\.16"),
                ("num=17", r"num=17 is not in 1\.\.16"),
                ("earlycon", "found too late for earlycon"),
                ("name=''", "name='' is not 1 to 64"),
                ("name=a/b", "name='a/b' is not 1 to 64"),
                ("name='a b'", "name='a b' is not 1 to 64"),
                ("name=" + "n" * 65, "is not 1 to 64"),
            )
        ),
        pytest.param(
            ["--serial", "sink,hardware=virtio-console", "--serial", "pty,hardware=virtio-console"],
            "virtio port 1 is configured twice",
            id="virtio-twice",
        ),
        pytest.param(
            [
                *("--serial", "sink,hardware=virtio-console,name=agent"),
                *("--serial", "pty,hardware=virtio-console,num=3,name=agent"),
            ],
            "name=agent is given to virtio port 1 and virtio port 3",
            id="name-twice",
        ),
        pytest.param(
            ["--serial", "sink,console", "--serial", "sink,num=2,console"],
            "only one port can have console, got COM1 and COM2",
        ),
        pytest.param(
            ["--serial", "sink,stdin", "--serial", "sink,num=2,stdin"],
            "only one port can have stdin",
        ),
    ],
)
def test_run_request_that_cannot_be_met_raises(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        config_of(*words, "k")
    assert not isinstance(caught.value, UsageError)


# A command line can have any bytes, those that are no UTF-8 as lone surrogates.
ODD = "\udcff"
WORDS = st.sampled_from(
    [
        *("-m", "-c", "--block", "-r", "--serial", "-p", "--", "k", "1", "a,ro", "stdout,num=2"),
        *("-x", ODD, f"--{ODD}", f"{ODD}=1", f"1,{ODD}", f"id={ODD}", f"a,b{ODD}"),
    ]
)
TEXT = st.text(max_size=8).filter(lambda word: word not in ("-h", "--help"))
KEYS = [(option.name, field.name) for option in OPTIONS for field in option.fields]


@pytest.mark.parametrize(("option", "key"), KEYS)
def test_run_bytes_that_are_no_text_give_a_config_or_a_config_error(option: str, key: str) -> None:
    for value in (ODD, f"'{ODD}'", f"[{ODD}]", f"1{ODD}", f"{ODD},{ODD}"):
        with contextlib.suppress(ConfigError):
            assert config_of(option, f"{key}={value}", "k").kernel


@given(st.lists(WORDS | TEXT, max_size=8))
def test_run_any_words_give_a_config_or_a_config_error(words: list[str]) -> None:
    with contextlib.suppress(ConfigError):
        assert config_of(*words).kernel
