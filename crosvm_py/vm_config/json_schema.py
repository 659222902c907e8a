# SPDX-License-Identifier: BSD-3-Clause
"""The JSON Schema of the configuration (draft 2020-12)."""

from __future__ import annotations

import msgspec

from crosvm_py.vm_config.schema import VmConfig
from sys_util.typing import Final

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kind: type[object] = VmConfig) -> dict[str, object]:
    """Return the schema of one class, with those that it uses."""
    return {"$schema": DIALECT, **msgspec.json.schema(kind)}
