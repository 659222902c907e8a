# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark's own parts that need no guest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.bench import devices, footprint, install, monitors, testhost, watch
from tests.bench.monitors import MICROVM, MONITORS, Q35
from tests.bench.results import OURS, Metric, Results, Summary, ratios, save, summarize

TIME = Metric("time", "ms")
RATE = Metric("rate", "requests/s", more_is_better=True)

WATCHED = """\
watch: start 1000000 77
[2026-01-01T00:00:00.000Z INFO  crosvm] watch what it says
watch: byte 3000000
watch: marker 5500000 guest: up
watch: exit 9000000 -9 12500
"""

SMAPS = """\
00400000-00500000 r-xp 00000000 fe:01 1 /usr/bin/python3.11
Size:               1024 kB
Rss:                 800 kB
Pss:                 400 kB
Pss_Dirty:             7 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0010000000 rw-s 00000000 00:01 2 /memfd:crosvm_guest (deleted)
Size:               2048 kB
Pss:               90000 kB
7f1000000000-7f1001000000 rw-p 00000000 00:00 0
Size:              16384 kB
Pss:               16000 kB
7f2000000000-7f2000001000 rw-p 00000000 00:00 0 [heap]
Size:                100 kB
Pss:                  50 kB
"""


# What watch says


def test_watched_run_is_read_among_other_lines() -> None:
    watched = watch.parse(WATCHED)
    assert watched.to_first_byte_ms() == 2.0
    assert watched.to_marker_ms("guest: up") == 4.5
    assert (watched.pid, watched.status, watched.cpu_ms) == (77, -9, 12.5)


def test_start_is_known_before_the_end() -> None:
    assert watch.parse_start("noise\nwatch: start 5 99\n") == 99
    assert watch.parse_start("noise\n") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "not come to its end", id="nothing"),
        pytest.param("watch: start 1 2\n", "not come to its end", id="no-exit"),
        pytest.param("watch: exit 1 0 0\n", "not come to its end", id="no-start"),
    ],
)
def test_watched_run_that_is_incomplete_is_refused(text: str, reason: str) -> None:
    with pytest.raises(watch.WatchError, match=reason):
        watch.parse(text)


def test_output_that_never_came_is_told() -> None:
    watched = watch.parse("watch: start 1 2\nwatch: exit 9 3 0\n")
    with pytest.raises(watch.WatchError, match="no output, status 3"):
        watched.to_first_byte_ms()
    with pytest.raises(watch.WatchError, match="no 'up' in the output"):
        watched.to_marker_ms("up")


@pytest.mark.slow
def test_watch_sees_bytes_markers_and_the_end(tmp_path: Path) -> None:
    program = watch.build(tmp_path)
    script = "printf a; printf 'b gue'; printf 'st: up'; exit 3"
    read_end, write_end = os.pipe()  # an input that does not end
    done = subprocess.run(
        [program, "60000", "guest: up", "ab", "never", "--", "sh", "-c", script],
        stdin=read_end,
        capture_output=True,
        text=True,
        check=True,
    )
    os.close(read_end)
    os.close(write_end)
    watched = watch.parse(done.stderr)
    assert done.stdout == "ab guest: up"
    assert watched.marker_ns.keys() == {"guest: up", "ab"}
    assert 0 < watched.to_first_byte_ms() <= watched.to_marker_ms("guest: up")
    assert watched.status == 3


@pytest.mark.slow
@pytest.mark.parametrize("milliseconds", ["1", "60000"], ids=["limit", "input-ends"])
def test_watch_kills_a_command_that_stays(tmp_path: Path, milliseconds: str) -> None:
    program = watch.build(tmp_path)
    done = subprocess.run(
        [program, milliseconds, "--", "sleep", "1000"],
        input="",
        capture_output=True,
        text=True,
        check=True,
    )
    assert watch.parse(done.stderr).status == -9


# Footprints


def test_pss_leaves_guest_memory_out_by_name_and_by_size() -> None:
    assert footprint.pss_kib(SMAPS, 16 << 20) == 450
    assert footprint.pss_kib(SMAPS, 17 << 20) == 16450


def test_stat_is_read_whatever_the_name() -> None:
    fields = ["S", "12", *["0"] * 9, "30", "20", "4", "3", *["0"] * 25, "10", "2", "0"]
    stat = footprint.parse_stat(f"7 (a) (b c) {' '.join(fields)}\n")
    assert stat == ("a) (b c", 12, 30 + 20 + 4 + 3 - 10 - 2)


def test_stat_of_this_process_is_understood() -> None:
    stat = footprint.parse_stat(Path("/proc/self/stat").read_text())
    assert stat.parent == os.getppid()
    assert stat.own_ticks >= 0


def test_processes_below_are_found_at_any_depth() -> None:
    assert sorted(footprint.below(1, {2: 1, 3: 2, 4: 3, 5: 9, 9: 0})) == [1, 2, 3, 4]


def test_footprint_is_a_program_that_needs_nothing() -> None:
    command = [sys.executable, "-I", "-S", footprint.__file__, str(os.getpid()), str(1 << 40)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert figures["pss_mib"] > 1
    assert figures["cpu_ms"] > 0


# Results


def test_summary_has_least_median_and_most() -> None:
    assert summarize([5, 1, 9, 2]) == Summary(1, 3.5, 9)


def test_ratio_is_ours_to_each_peer() -> None:
    by_name = {OURS: Summary(1, 3, 4), MICROVM: Summary(1, 2, 4), Q35: Summary(0, 0, 0)}
    assert ratios(by_name) == {MICROVM: 1.5}
    assert ratios({MICROVM: Summary(1, 2, 4)}) == {}


@pytest.mark.parametrize(("load", "warned"), [(0.5, False), (2.5, True)])
def test_load_of_the_machine_is_noted(
    monkeypatch: pytest.MonkeyPatch, load: float, warned: bool
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    results = Results("title")
    results.note_load()
    assert ("too high" in results.notes[0]) == warned


@pytest.fixture
def results() -> Results:
    results = Results("title")
    for ours, theirs in ((30, 60), (10, 20), (20, 40)):
        results.add(TIME, OURS, ours)
        results.add(TIME, MICROVM, theirs)
        results.add(RATE, OURS, 1000 * ours)
    return results


def test_table_shows_every_monitor_and_the_ratio(results: Results) -> None:
    lines = [line.split() for line in results.table().splitlines()]
    assert ["crosvm-py", "10.0", "20.0", "30.0"] in lines
    assert ["QEMU", "microvm", "20.0", "40.0", "60.0", "0.50"] in lines
    assert ["crosvm-py", "10000", "20000", "30000"] in lines
    assert "rate (requests/s, more is better)" in results.table()


def test_json_has_every_run(results: Results, tmp_path: Path) -> None:
    save(tmp_path / "figures.json", [results])
    (saved,) = json.loads((tmp_path / "figures.json").read_text())
    time, rate = saved["metrics"]
    assert saved == json.loads(json.dumps(results.as_json()))
    assert time["runs"] == {OURS: [30, 10, 20], MICROVM: [60, 20, 40]}
    assert time["ratio"] == {MICROVM: 0.5}
    assert rate["more_is_better"] is True


# The two places


def test_every_monitor_gets_the_same_guest() -> None:
    guest = testhost.FIO_GUEST
    for monitor in MONITORS:
        command = monitors.linux_command(monitor, "crosvm", guest, "true", "stay")
        text = " ".join(command)
        assert guest.kernel in command
        assert guest.root in text
        assert testhost.DATA in text
        assert "quiet crosvm.run=dHJ1ZQ== crosvm.end=stay" in text
        assert command[command.index("-m") + 1] == "256"


def test_script_for_the_guest_fits_the_kernel_command_line() -> None:
    command = monitors.linux_command(
        Q35, "crosvm", testhost.FIO_GUEST, testhost._FIO_SCRIPT, "stay"
    )
    assert len(command[command.index("-append") + 1]) < 2048


def test_first_entry_is_found_in_the_trace() -> None:
    trace = textwrap.dedent(
        """\
        # tracer: nop
        #           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
                 vcpu0-171     [000] d....   264.203112: kvm_entry: vcpu 0, rip 0x1000000
                 vcpu0-171     [000] d....   264.213112: kvm_entry: vcpu 0, rip 0x1000000
        """
    )
    assert testhost.parse_first_entry(trace) == 264_203_112_000
    with pytest.raises(watch.WatchError, match="no kvm_entry"):
        testhost.parse_first_entry("# tracer: nop\n")


def test_guest_clock_is_found_in_its_output() -> None:
    assert testhost.parse_guest_clock("x\r\nguest: up 1.93\r\n") == 1930
    with pytest.raises(watch.WatchError, match="the guest is not up: 'panic'"):
        testhost.parse_guest_clock("panic")


def test_fio_figures_are_found_in_the_output() -> None:
    output = "fio randread1 812\r\nfio randread32 1610\r\nfio read 90\r\n"
    assert testhost.parse_fio(output) == {"randread1": 812, "randread32": 1610, "read": 90}
    with pytest.raises(watch.WatchError, match="fio printed"):
        testhost.parse_fio("fio randread1 812\r\n")


# Devices

DEVICES_PRINTED = """\
bench ping round-trip min/avg/max = 3.030/6.778/29.812 ms\r
bench send [  5]   0.00-3.01   sec   116 MBytes   322 Mbits/sec                  receiver\r
bench receive [  5]   0.00-3.00   sec  1.21 GBytes  3460 Mbits/sec                  receiver\r
bench udp [  5]   0.00-2.50   sec   163 KBytes  0.43 Mbits/sec  0.996 ms  70/7570 (0.9%)  receiver\r
bench vsend 20.50 22.50\r
bench balloon 30.00 34.00 245760\r
"""


def test_figures_of_devices_are_found_in_the_output() -> None:
    assert devices.parse(f"guest: up 1.5\r\n{DEVICES_PRINTED}guest: exit 0\r\n") == {
        "ping": 6.778,
        "send": 322,
        "receive": 3460,
        "udp": 3000,
        "vsend": devices.VSOCK_MIB / 2,
        "balloon": 60,
    }


@pytest.mark.parametrize(
    "line",
    [
        "bench ping",
        "bench ping ",
        "bench send iperf3: error - unable to connect",
        "bench udp [  5] 0.00-3.00 sec",
        "bench vsend 20.50 20.50",
        "bench vsend 20.50",
        "bench ready",
    ],
)
def test_line_without_a_figure_is_left_out(line: str) -> None:
    assert devices.parse(f"{line}\n") == {}


@pytest.mark.parametrize("vhost", devices.DATAPATHS)
@pytest.mark.parametrize("monitor", devices.MONITORS)
def test_every_monitor_gets_the_same_devices(monitor: str, vhost: bool) -> None:
    words = devices.command(monitor, vhost=vhost)
    text = " ".join(words)
    assert devices.GUEST.kernel in words
    assert devices.TAP in text
    assert ("vhost-net" in text or "vhost=on" in text) == vhost
    assert "balloon" in text
    assert (str(devices.CID) in text) == (vhost or monitor == OURS)
    assert max(map(len, words)) < 2048  # the kernel's command line


def test_every_figure_is_measured_somewhere() -> None:
    for vhost in devices.DATAPATHS:
        assert devices.measured(OURS, vhost=vhost) >= devices.measured(Q35, vhost=vhost)
    assert devices.measured(OURS, vhost=False) == devices.FIGURES.keys()
    assert "vsend" not in devices.script({"send"})


def test_metrics_name_the_datapath() -> None:
    assert devices.metric("send", vhost=False).name == "TCP from the guest, monitor"
    assert devices.metric("send", vhost=True).name == "TCP from the guest, vhost"
    assert devices.metric("ping", vhost=True).more_is_better is False


@pytest.mark.slow
def test_installed_crosvm_runs_from_its_own_packages(tmp_path: Path) -> None:
    script = install.install(tmp_path / "installed")
    probe = "import crosvm_py, msgpack; print(crosvm_py.__file__)"
    done = subprocess.run(
        [script.with_name(Path(sys.executable).name), "-I", "-c", probe],
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
    version = subprocess.run([script, "version"], capture_output=True, text=True, check=True)
    assert version.stdout
