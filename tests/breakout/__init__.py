# SPDX-License-Identifier: BSD-3-Clause
"""Code that tries to get out of the real jail of each device kind: ``python -m tests.breakout``."""
