# SPDX-License-Identifier: BSD-3-Clause
"""Guests without an operating system, in C and assembly."""
