# SPDX-License-Identifier: BSD-3-Clause
"""Bare-metal guests on this machine's /dev/kvm."""
