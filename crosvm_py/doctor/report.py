# SPDX-License-Identifier: BSD-3-Clause
"""The findings of the doctor, as lines for people and as JSON for scripts."""

from __future__ import annotations

from sys_util.enum import StrEnum
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Status(StrEnum):
    """What a finding means for running guests."""

    OK = "ok"
    WARNING = "warning"  # guests run, with something missing
    PROBLEM = "problem"  # no guest runs, or none in a sandbox


class Finding(NamedTuple):
    """One line of the report: what was checked, what was found, and what to do about it."""

    name: str
    status: Status
    detail: str
    advice: str = ""


VIRTUALIZATION: Final = "hardware virtualization"
GUEST: Final = "guest"


def can_boot_stock_kernels(findings: Sequence[Finding]) -> bool:
    """Return whether a guest can be an unmodified kernel, and not only a bare-metal program."""
    return can_run(findings) and all(
        finding.status is Status.OK for finding in findings if finding.name == VIRTUALIZATION
    )


def can_run(findings: Sequence[Finding]) -> bool:
    """Return whether a guest can run, in its sandbox."""
    return all(finding.status is not Status.PROBLEM for finding in findings)


def as_text(findings: Sequence[Finding]) -> str:
    """Return one line for each finding, with the advice at its end, and a verdict."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for name, status, detail, advice in findings:
        hint = f"; {advice}" if advice else ""
        lines.append(f"{status:7}  {name:{width}}  {detail}{hint}")
    return "\n".join([*lines, "", _verdict(findings)]) + "\n"


def _verdict(findings: Sequence[Finding]) -> str:
    if can_boot_stock_kernels(findings):
        return "guests can run here"
    if can_run(findings):
        return "bare-metal guests can run here, stock kernels cannot"
    return "guests cannot run here"


def as_json(findings: Sequence[Finding]) -> str:
    """Return ``{can_run, can_boot_stock_kernels, checks: [{name, status, detail, advice}, …]}``."""
    import json

    checks = [finding._asdict() for finding in findings]
    answer = {
        "can_run": can_run(findings),
        "can_boot_stock_kernels": can_boot_stock_kernels(findings),
        "checks": checks,
    }
    return json.dumps(answer, indent=2) + "\n"
