# SPDX-License-Identifier: BSD-3-Clause
"""The Debian tree that the root image and the KVM test host are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.guests import debian
from tests.guests.cache import artefact, run

PACKAGES: Final = Path(__file__).parent / "base-packages.txt"


def build() -> Path:
    """Return the root of a configured Debian tree with everything in ``base-packages.txt``."""

    packages = debian.package_list(PACKAGES.read_text())

    def fill(target: Path) -> None:
        debian.tree(target / "tree", packages)
        run(
            "remove package lists",
            ["rm", "-rf", target / "tree/var/cache", target / "tree/var/lib/apt"],
        )

    return artefact("guests", "debian", [debian.SUITE, *packages], fill) / "tree"
