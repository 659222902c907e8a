# SPDX-License-Identifier: BSD-3-Clause
"""``msgpack``, imported without the half millisecond and the memory that ``datetime`` takes.

msgpack needs ``datetime`` for time stamps, which none of our messages has. The part of it that is
written in C has the same classes, and stands in for it while msgpack is imported.
"""

from __future__ import annotations

import sys

from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from msgpack import packb as packb
    from msgpack import unpackb as unpackb
else:
    import _datetime

    _stands_in = sys.modules.setdefault("datetime", _datetime) is _datetime
    try:
        from msgpack import packb as packb
        from msgpack import unpackb as unpackb
    finally:
        if _stands_in:
            del sys.modules["datetime"]
