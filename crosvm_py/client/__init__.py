# SPDX-License-Identifier: BSD-3-Clause
"""A client of Cloud Hypervisor's REST API, of ours and of its own: see ``crosvm_py.client.vm``."""
