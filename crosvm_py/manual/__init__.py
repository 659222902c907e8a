# SPDX-License-Identifier: BSD-3-Clause
"""Manual pages, shell completions and the systemd unit, from the tables that the parsers use.

``python -m crosvm_py.manual DIRECTORY`` writes them as they are installed below a prefix.
"""
