# SPDX-License-Identifier: BSD-3-Clause
"""A kernel that needs no modules, compiled from Debian's ``linux-source`` with a small config."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.guests import debian
from tests.guests.cache import BuildError, artefact, run, say

HERE: Final = Path(__file__).parent
CONFIG: Final = HERE / "linux.config"
PACKAGE: Final = "linux-source-6.1"
# Most of the source is never compiled here; Kconfig files must all be there.
LEFT_OUT: Final = (
    *("*/Documentation/*/*", "*/tools/testing/*", "*/tools/perf/*", "*.dts", "*.dtsi"),
    *("*/arch/[!x]*/*.[chS]", "*/drivers/gpu/*.[ch]", "*/drivers/media/*.[ch]", "*/sound/*.[ch]"),
    *("*/drivers/net/ethernet/*.[ch]", "*/drivers/net/wireless/*.[ch]", "*/drivers/staging/*.[ch]"),
)
JOBS: Final = 2


def missing_options(wanted: str, config: str) -> list[str]:
    """Return the options that Kconfig did not take over, say for an unmet dependency."""
    have = set(config.splitlines())
    return [line for line in wanted.splitlines() if line.startswith("CONFIG_") and line not in have]


def build() -> Path:
    """Return the folder with ``vmlinux`` (stripped) and ``bzImage``."""
    return artefact("guests", "builtin", [PACKAGE, CONFIG, *LEFT_OUT], _compile)


def _compile(target: Path) -> None:
    debian.unpack(PACKAGE, target / "package")
    say("builtin: unpacking the kernel source")
    archive = target / f"package/usr/src/{PACKAGE}.tar.xz"
    run("unpack", ["tar", "-C", target, "-xf", archive, *(f"--exclude={it}" for it in LEFT_OUT)])
    source = target / PACKAGE
    make = ["make", "-s", f"-j{JOBS}"]
    run("kernel config", [*make, f"KCONFIG_ALLCONFIG={CONFIG}", "allnoconfig"], cwd=source)
    missing = missing_options(CONFIG.read_text(), (source / ".config").read_text())
    if missing:
        raise BuildError(f"{CONFIG.name}: not taken over: {' '.join(missing)}")
    say("builtin: compiling the kernel (some minutes)")
    run("compile", ["nice", *make, "vmlinux", "bzImage"], cwd=source)
    run("strip", ["strip", "-o", target / "vmlinux", source / "vmlinux"])
    (target / "bzImage").write_bytes((source / "arch/x86/boot/bzImage").read_bytes())
    run("remove the source", ["rm", "-r", source, target / "package"])
