# SPDX-License-Identifier: BSD-3-Clause
"""The program ``cloud-hypervisor``: Cloud Hypervisor's command line, in front of our vmm."""

from __future__ import annotations

import os
from contextlib import ExitStack

from crosvm_py.api_socket import check_packages, open_api_socket
from crosvm_py.cli.output import write_error, write_out
from crosvm_py.cloud_hypervisor.log_lines import configure_log
from crosvm_py.config import ApiSocketSpec
from crosvm_py.end_signals import reset_inherited_signals
from crosvm_py.exit_status import exit_status
from crosvm_py.inherited import drop_inherited
from crosvm_py.tunables import run_without_huge_pages
from sys_util import linux
from sys_util.channel import socket_pair
from sys_util.errors import ConfigError, VmmError, describe
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crosvm_py.config import RunConfig
    from crosvm_py.socket_path import BoundSocket
    from crosvm_py.vm_config.command_line import CommandLine, Place
    from crosvm_py.vm_config.schema import VmConfig
    from crosvm_py.vmm.control_proxy import KeeperProcess
    from sys_util import socket

NAME: Final = "cloud-hypervisor"
# As the kernel cuts it off (PR_SET_NAME).
_PROCESS_NAME: Final = NAME[:15]
# Clap, which reads Cloud Hypervisor's command line, ends with this status.
_USAGE: Final = 2
_POLICIES: Final = ("control_api", "opener")


def run(words: Sequence[str]) -> int:
    """Run the program and return its exit status."""
    try:
        check_packages()
        return _run(words)
    except VmmError as error:
        _print_chain(error)
        return 1


def _run(words: Sequence[str]) -> int:
    from crosvm_py.vm_config.command_line import parse_command_line
    from crosvm_py.vm_config.errors import SchemaError

    try:
        line = parse_command_line(words)
    except SchemaError as error:
        write_error(f"{error}; see {NAME} --help")
        return _USAGE
    if line.version_wanted:
        return _print_version()
    if line.help_wanted or not words:
        return _print_help(wanted=line.help_wanted)
    if line.config is None and line.api_socket is None and line.restore is None:
        write_error(f"nothing to do: neither a kernel nor --api-socket is given; see {NAME} --help")
        return _USAGE
    if line.restore is not None:
        raise ConfigError("--restore: snapshots are not supported by crosvm-py")
    return _start(line)


def _start(line: CommandLine) -> int:
    from crosvm_py.cloud_hypervisor.events import EventMonitor

    run_without_huge_pages()
    drop_inherited()
    reset_inherited_signals()
    linux.set_process_name(_PROCESS_NAME)
    configure_log(line.log_file, line.verbosity)
    with ExitStack() as stack:
        api = _open_api(line.api_socket, stack)
        events = EventMonitor(_open_monitor(line.event_monitor, stack))
        keeper, store, orders = None, -1, None
        if api is not None:
            keeper, store, orders = _start_control(line, api, stack)
        # Imported while the control process starts.
        from crosvm_py.cloud_hypervisor.vmm import WaitingVmm

        vmm = WaitingVmm(
            *(keeper, api, _config_reader(line, store), events),
            no_shutdown=line.no_shutdown,
            orders=orders,
        )
        return exit_status(vmm.run(boot=line.config is not None), extended=False)


def _open_api(place: Place | None, stack: ExitStack) -> BoundSocket | None:
    if place is None:
        return None
    spec = ApiSocketSpec(place.path, -1 if place.fd is None else place.fd)
    return open_api_socket(spec, stack)


def _open_monitor(place: Place | None, stack: ExitStack) -> int:
    from crosvm_py.cloud_hypervisor.events import open_monitor

    if place is None:
        return -1
    fd = open_monitor(place.path) if place.fd is None else os.dup(place.fd)
    stack.callback(os.close, fd)
    return fd


def _start_control(
    line: CommandLine, api: BoundSocket, stack: ExitStack
) -> tuple[KeeperProcess, int, socket.socket]:
    """Start the control process.

    Return its keeper, the file with the configuration, and the warden's end of the channel from the
    opener.
    """
    from crosvm_py.api.store import Store, make_store
    from crosvm_py.control.protocol import ControlFds
    from crosvm_py.vm_config.codec import encode
    from crosvm_py.vmm.control_proxy import start_keeper
    from seccomp import load_policy

    store = make_store()
    stack.callback(os.close, store)
    if line.config is not None:
        Store(store).save(encode(line.config))
    only_logs = line.seccomp in ("false", "log")
    policies = tuple(load_policy(name, log_failures=only_logs) for name in _POLICIES)
    openers, wardens = socket_pair()
    stack.callback(wardens.close)
    with openers:
        orders = openers.fileno()
        fds = ControlFds(api=api.sock.fileno(), store=store, orders=orders, boots=1)
        keeper = start_keeper(fds, (policies[0], policies[1]), (), when_vmm_is_gone=api.unlink)
    stack.callback(keeper.end)
    api.close()
    return keeper, store, wardens


def _config_reader(
    line: CommandLine, store: int
) -> Callable[[frozenset[int]], tuple[RunConfig, dict[str, str]]]:
    """Return what reads the configuration: that of the store, or that of the command line.

    With it come the ids of devices by the names that the vmm has for them.
    """
    from crosvm_py.api.device_ids import ids_by_name, with_ids
    from crosvm_py.vm_config.codec import decode
    from crosvm_py.vm_config.schema import VmConfig
    from crosvm_py.vm_config.to_run import run_config

    ours = _fds(line.config)

    def read(kept: frozenset[int]) -> tuple[RunConfig, dict[str, str]]:
        config = line.config
        if store >= 0:
            from crosvm_py.api.store import Store

            config = decode(Store(store).load_config(), VmConfig, keep_fds=True)
        if config is None:
            raise ConfigError("there is no configuration")
        if not _fds(config) <= kept | ours:
            raise ConfigError("net.fds: descriptors that no client has sent")
        ids = ids_by_name(with_ids(config))
        return _as_run_here(run_config(config), line), ids

    return read


def _fds(config: VmConfig | None) -> frozenset[int]:
    cards = () if config is None else config.net or ()
    return frozenset(fd for card in cards for fd in card.fds or ())


def _as_run_here(config: RunConfig, line: CommandLine) -> RunConfig:
    """Return the run as this program makes it: in the cgroup that its caller has chosen."""
    from sys_util.facts import replace

    return replace(
        config,
        name=_PROCESS_NAME,
        cgroup="none",
        reboots=True,
        seccomp_log_failures=line.seccomp in ("false", "log"),
    )


def _print_chain(error: VmmError) -> None:
    """Print an error as Cloud Hypervisor does: the reasons, numbered, the outermost first."""
    lines = [f"Error: {NAME} exited with the following chain of errors:", f"  0: {error}"]
    cause = error.__cause__
    if cause is not None and describe(error) != str(error):
        lines.append(f"  1: {getattr(cause, 'strerror', '') or cause}")
    os.write(2, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))


def _print_version() -> int:
    from crosvm_py.api.versions import BUILD_VERSION

    write_out(f"{NAME} {BUILD_VERSION}\n")
    return 0


def _print_help(*, wanted: bool) -> int:
    from crosvm_py.vm_config.option_help import describe_options

    lines = (f"  {line}" for line in describe_options())
    write_out("\n".join((f"Usage: {NAME} [OPTIONS]", "", *lines)) + "\n")
    return 0 if wanted else _USAGE
