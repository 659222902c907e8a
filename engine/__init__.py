# SPDX-License-Identifier: BSD-3-Clause
"""The native data plane: bulk queues served by a small Rust library, where that is built."""
