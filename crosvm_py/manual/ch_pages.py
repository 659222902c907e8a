# SPDX-License-Identifier: BSD-3-Clause
"""The pages of ``cloud-hypervisor`` and ``ch-remote``."""

from __future__ import annotations

from crosvm_py.cloud_hypervisor import remote
from crosvm_py.manual.page import Page
from crosvm_py.vm_config.option_help import describe_keys, options_with_help
from sys_util.typing import Final

_SEE_ALSO: Final = ("cloud-hypervisor", "ch-remote", "crosvm")


def ch_pages() -> dict[str, str]:
    """Return both pages by their names."""
    return {"cloud-hypervisor": _program(), "ch-remote": _remote()}


def _program() -> str:
    page = Page("cloud-hypervisor", "run a VM with the interfaces of Cloud Hypervisor")
    page.section("SYNOPSIS")
    page.text("cloud-hypervisor --api-socket PATH [OPTIONS]")
    page.text("cloud-hypervisor --kernel PATH [OPTIONS]")
    page.section("DESCRIPTION")
    page.text(
        "The virtual machine monitor of crosvm-py with the command line, the REST API and the "
        "events of Cloud Hypervisor. With a kernel it boots the VM that the options describe; "
        "otherwise it waits for vm.create and vm.boot."
    )
    page.section("OPTIONS")
    for option in options_with_help():
        page.entry(f"{option.name} {option.form}".rstrip(), option.text)
        rows = describe_keys(option.name)
        if rows:
            page.entries_below("Keys:", rows)
    page.section("EXIT STATUS")
    page.entry("0", "the guest powered off, or the VMM was ended by a client or by a signal")
    page.entry("1", "an error, whose causes are printed as a numbered list")
    page.entry("2", "a command line that cannot be read")
    return page.finish(_SEE_ALSO)


def _remote() -> str:
    page = Page("ch-remote", "control a VM by the REST API of Cloud Hypervisor")
    page.section("SYNOPSIS")
    page.text("ch-remote --api-socket PATH COMMAND [ARGUMENTS]")
    page.section("COMMANDS")
    for name, command in remote.COMMANDS.items():
        page.entry(f"{name} {command.arguments}".rstrip(), command.about)
    page.section("EXIT STATUS")
    page.entry("0", "the call succeeded; what it answers is printed as JSON")
    page.entry("1", "it failed; the causes are printed as a numbered list, the outermost first")
    page.entry("2", "a command line that cannot be read")
    return page.finish(_SEE_ALSO)
