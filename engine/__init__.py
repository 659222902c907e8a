# SPDX-License-Identifier: BSD-3-Clause
"""The native data plane: a small Rust library, built if cargo is there, serves bulk queues."""
