# SPDX-License-Identifier: BSD-3-Clause
"""The checks of the doctor; each tries the thing itself if that is possible."""

from __future__ import annotations

import errno
import os
import sys

from crosvm_py.doctor.report import GUEST, VIRTUALIZATION, Finding, Status, can_run
from sys_util.errors import HostError, VmmError, describe
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MIN_PYTHON: Final = (3, 11)

# Distribution and module. The module is imported, because a broken build has a version as well.
LIBRARIES: Final = (
    ("msgpack", "msgpack"),
    ("cffi", "cffi"),
    ("pyseccomp", "pyseccomp"),
    ("python-prctl", "prctl"),
    ("lz4", "lz4.frame"),
    ("zstandard", "zstandard"),
)

_SECCOMP_ACTIONS: Final = "/proc/sys/kernel/seccomp/actions_avail"


def diagnose() -> list[Finding]:
    """Check everything that a run needs, and what optional features need."""
    findings: list[Finding] = []
    for name, check in CHECKS:
        try:
            findings += check(name)
        except HostError as error:
            cause = error.__cause__
            reason = f": {cause.strerror}" if isinstance(cause, OSError) else ""
            detail = f"{error.operation} {error.target}{reason}"
            findings.append(Finding(name, Status.PROBLEM, detail, error.hint))
        except (VmmError, OSError) as error:
            findings.append(Finding(name, Status.PROBLEM, describe(error)))
        except ImportError as error:
            advice = "install crosvm-py again, its native modules are built then"
            findings.append(Finding(name, Status.PROBLEM, f"{error}", advice))
    if can_run(findings):
        findings.append(_run_guest())
    return findings


def _run_guest() -> Finding:
    """Run a guest if all checks have passed, since they cannot cover everything."""
    from crosvm_py.doctor.guest import try_guest

    try:
        try_guest()
    except (HostError, OSError) as error:
        return Finding(GUEST, Status.PROBLEM, describe(error))
    return Finding(GUEST, Status.OK, "one ran in its sandbox, until it asked for a reset")


def _check_python(name: str) -> list[Finding]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < MIN_PYTHON:
        needed = ".".join(str(part) for part in MIN_PYTHON)
        return [Finding(name, Status.PROBLEM, version, f"install Python {needed} or later")]
    return [Finding(name, Status.OK, version)]


def _check_libraries(_name: str) -> list[Finding]:
    import importlib
    from importlib import metadata

    findings = []
    for distribution, module in LIBRARIES:
        try:
            importlib.import_module(module)
        except (ImportError, RuntimeError) as error:  # pyseccomp raises RuntimeError
            advice = f"pip install {distribution}"
            findings.append(Finding(distribution, Status.PROBLEM, f"{error}", advice))
            continue
        try:
            detail = metadata.version(distribution)
        except metadata.PackageNotFoundError:  # Linux distributions may leave the metadata out
            detail = "there, of a version that is not told"
        findings.append(Finding(distribution, Status.OK, detail))
    return findings


def _check_machine(name: str) -> list[Finding]:
    machine = os.uname().machine
    if machine != "x86_64":
        return [Finding(name, Status.PROBLEM, machine, "only x86_64 hosts can run guests so far")]
    return [Finding(name, Status.OK, f"{machine}, Linux {os.uname().release}")]


def _check_kvm(name: str) -> list[Finding]:
    from kvm.vm import Kvm, Vm

    kvm = Kvm.open()
    try:
        kvm.create_vm(Vm).close()
        detail = f"usable, a VM can be made, up to {kvm.max_vcpus} vCPUs"
    finally:
        kvm.close()
    return [Finding(name, Status.OK, detail)]


def _check_virtualization(name: str) -> list[Finding]:
    from kvm.vm import host_has_hardware_virtualization

    if host_has_hardware_virtualization():
        return [Finding(name, Status.OK, "the processor has VMX or SVM")]
    return [
        Finding(
            name,
            Status.WARNING,
            "none: KVM here emulates the guest's kernel code, so stock kernels do not boot",
            "use a host with VMX or SVM, or turn nested virtualization on in the outer host",
        )
    ]


def _check_memfd(name: str) -> list[Finding]:
    fd = os.memfd_create("crosvm_doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.close(fd)
    return [Finding(name, Status.OK, "memfd_create with seals works")]


def _check_sandbox(name: str) -> list[Finding]:
    from crosvm_py.doctor.sandbox import try_jail
    from jail.ids import choose

    try_jail()
    who = "root" if os.geteuid() == 0 else "an ordinary user"
    ids = "ids of its own" if choose().gives_own else "your ids"
    detail = f"namespaces, empty root and filter work as {who}; a device has {ids}"
    return [Finding(name, Status.OK, detail)]


def _check_seccomp(name: str) -> list[Finding]:
    try:
        with open(_SECCOMP_ACTIONS, encoding="ascii") as file:
            actions = file.read().split()
    except OSError as error:
        advice = "use a kernel with CONFIG_SECCOMP_FILTER, and mount a proc(5) at /proc"
        detail = f"{_SECCOMP_ACTIONS}: {error.strerror}"
        return [Finding(name, Status.PROBLEM, detail, advice)]
    missing = {"kill_process", "trap", "errno", "log", "allow"} - set(actions)
    if missing:
        detail = f"without {', '.join(sorted(missing))}"
        return [Finding(name, Status.PROBLEM, detail, "use Linux 4.14 or later")]
    return [Finding(name, Status.OK, "filters with " + " ".join(actions))]


def _check_device(path: str, use: str, advice: str) -> Callable[[str], list[Finding]]:
    def check(name: str) -> list[Finding]:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            detail = f"{path}: {error.strerror}; no {use}"
            denied = isinstance(error, PermissionError)
            hint = "root and the group that owns it may use it" if denied else advice
            return [Finding(name, Status.WARNING, detail, hint)]
        return [Finding(name, Status.OK, f"{path} is usable")]

    return check


def _check_huge_pages(name: str) -> list[Finding]:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError as error:
        return [Finding(name, Status.WARNING, f"unknown, /proc/meminfo: {error.strerror}")]
    free = fields.get("HugePages_Free", "").strip()
    size = fields.get("Hugepagesize", "").strip()
    if not free or free == "0":
        advice = "sysctl vm.nr_hugepages=N reserves some; guests run without"
        return [Finding(name, Status.WARNING, "none reserved", advice)]
    return [Finding(name, Status.OK, f"{free} free of {size}")]


def _check_shared_huge_pages(name: str) -> list[Finding]:
    path = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
    try:
        with open(path, encoding="ascii") as file:
            chosen = file.read().partition("[")[2].partition("]")[0]
    except OSError as error:
        return [Finding(name, Status.WARNING, f"unknown, {path}: {error.strerror}")]
    if chosen not in ("never", "deny"):
        return [Finding(name, Status.OK, chosen)]
    if _can_make_huge_pages():
        which = "guest memory has 4 KiB pages but for the kernel and what it uses first"
    else:
        which = "guest memory has 4 KiB pages, and Linux before 6.1 cannot make others"
    advice = f"echo advise >{path}: guests boot and run faster"
    return [Finding(name, Status.WARNING, f"{chosen}: {which}", advice)]


def _can_make_huge_pages() -> bool:
    from sys_util.guest_memory import HUGE_PAGE_BYTES, GuestMemory

    memory = GuestMemory.create([(0, HUGE_PAGE_BYTES)])
    try:
        return memory.make_huge(0, HUGE_PAGE_BYTES)
    finally:
        memory.close()


def _check_cgroup(name: str) -> list[Finding]:
    from jail.cgroup_site import CONTROLLERS, NoCgroupError, find_site

    try:
        site = find_site()
    except NoCgroupError as error:
        detail = f"{error}: devices have resource limits alone"
        return [Finding(name, Status.WARNING, detail, error.hint)]
    missing = [controller for controller in CONTROLLERS if controller not in site.controllers]
    if missing:
        detail = f"{site.path} is without {', '.join(missing)}"
        return [Finding(name, Status.WARNING, detail, "have its parent delegate them")]
    return [Finding(name, Status.OK, f"devices get groups of their own below {site.path}")]


def _check_landlock(name: str) -> list[Finding]:
    from sys_util.landlock import abi_version

    version = abi_version()
    if not version:
        advice = (
            "boot with lsm=landlock, if the kernel has it; the vmm's filter stands alone without"
        )
        return [Finding(name, Status.WARNING, "none", advice)]
    return [Finding(name, Status.OK, f"version {version} of its ABI")]


def _check_core_scheduling(name: str) -> list[Finding]:
    from crosvm_py.machine.core_scheduling import find_refusal

    refusal = find_refusal()
    if refusal is None:
        return [Finding(name, Status.OK, "vCPUs share no core with anything else")]
    if refusal.errno == errno.ENODEV:
        return [Finding(name, Status.OK, "not needed, every core runs one thread")]
    detail = f"{refusal.strerror}: other programs run beside vCPUs in one core"
    advice = "use Linux 5.14 or later with CONFIG_SCHED_CORE, or switch SMT off"
    return [Finding(name, Status.WARNING, detail, advice)]


def _check_engine(name: str) -> list[Finding]:
    from devices.virtio.queue.native import IS_BUILT

    if IS_BUILT:
        return [Finding(name, Status.OK, "serves disks and network cards")]
    advice = "install a Rust compiler (cargo-web and rustc-web on Debian 12), then crosvm again"
    return [
        Finding(
            name, Status.WARNING, "not built: disks and network cards are served in Python", advice
        )
    ]


CHECKS: Final[Sequence[tuple[str, Callable[[str], list[Finding]]]]] = (
    ("host", _check_machine),
    ("kvm", _check_kvm),
    (VIRTUALIZATION, _check_virtualization),
    ("memfd", _check_memfd),
    ("seccomp", _check_seccomp),
    ("sandbox", _check_sandbox),
    ("tun", _check_device("/dev/net/tun", "TAP networking", "modprobe tun")),
    ("vhost-net", _check_device("/dev/vhost-net", "vhost networking", "modprobe vhost_net")),
    ("vhost-vsock", _check_device("/dev/vhost-vsock", "vsock", "modprobe vhost_vsock")),
    ("huge pages", _check_huge_pages),
    ("transparent huge pages", _check_shared_huge_pages),
    ("cgroup", _check_cgroup),
    ("landlock", _check_landlock),
    ("core scheduling", _check_core_scheduling),
    ("python", _check_python),
    ("engine", _check_engine),
    ("libraries", _check_libraries),
)
