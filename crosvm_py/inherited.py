# SPDX-License-Identifier: BSD-3-Clause
"""What a run inherits from whoever starts it, and passes on to nobody: descriptors, environment.

Every process of a VM is forked from the first, and a guest may take some over. Whoever starts a VM
may have secrets in the environment, and open files that no program of ours is meant to have.
"""

from __future__ import annotations

from sys_util import linux
from sys_util.environment import forget_environment
from sys_util.typing import Final

# What a run still asks for: where its policy cache is, where passt is, who is asked to make a TAP,
# and what time it is in the log. No secret is in any of them.
_KEPT: Final = frozenset({"HOME", "PATH", "TZ", "USER", "XDG_CACHE_HOME"})
_FIRST: Final = 3  # behind the standard streams


def keep_to_oneself() -> None:
    """Forget the environment, and close every descriptor where another program is executed.

    For the start of a run, before it opens or forks anything. A descriptor that an option names
    stays open here.

    Raises:
        OSError: the kernel has no close_range(2) that does so, which is there since Linux 5.11.
    """
    linux.close_on_exec(_FIRST)
    forget_environment(_KEPT)
