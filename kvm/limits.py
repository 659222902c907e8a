# SPDX-License-Identifier: BSD-3-Clause
"""Messages that tell the user what the host's KVM cannot do."""

from __future__ import annotations

from sys_util.typing import Final

NO_VIRTUALIZATION: Final = (
    "this host's processor offers no hardware virtualization (neither vmx nor svm), so its KVM "
    "emulates the guest's kernel and knows only part of the instruction set: stock kernels do not "
    "run here"
)
