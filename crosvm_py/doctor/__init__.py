# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm doctor``: can this host run guests, and what would have to change."""

from crosvm_py.doctor.checks import diagnose
from crosvm_py.doctor.report import Finding, Status, as_json, as_text, can_run

__all__ = ["Finding", "Status", "as_json", "as_text", "can_run", "diagnose"]
