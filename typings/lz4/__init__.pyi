# SPDX-License-Identifier: BSD-3-Clause
"""The part of lz4 that this project uses; the package has no types of its own."""
