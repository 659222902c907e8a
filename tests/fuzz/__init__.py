# SPDX-License-Identifier: BSD-3-Clause
"""Fuzzers of everything that a guest, or a device process that it took over, can say.

``python -m tests.fuzz`` runs them, for a second or for a night. Each target takes its decisions
from a ``Source``: a seeded generator, or the bytes of a coverage-guided fuzzer (atheris).
"""
