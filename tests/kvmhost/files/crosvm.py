#!/usr/bin/python3 -I
# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm`` in the test host: the project as it was copied to ``/project``."""

import sys

sys.path.insert(0, "/project")

from crosvm_py.__main__ import main

sys.exit(main())
