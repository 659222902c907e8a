# SPDX-License-Identifier: BSD-3-Clause
"""The version of Cloud Hypervisor's interface that we have, which its clients ask for."""

from __future__ import annotations

from crosvm_py.version import VERSION
from sys_util.typing import Final

INTERFACE_VERSION: Final = "51.1.0"
BUILD_VERSION: Final = f"v{INTERFACE_VERSION}-crosvm-py-{VERSION}"
