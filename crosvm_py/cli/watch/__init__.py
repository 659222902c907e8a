# SPDX-License-Identifier: BSD-3-Clause
"""Look at running VMs: what they tell, and what the kernel tells of their processes."""
