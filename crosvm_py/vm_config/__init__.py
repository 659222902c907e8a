# SPDX-License-Identifier: BSD-3-Clause
"""The schema of a VM's configuration, which is that of Cloud Hypervisor.

One definition serves the REST API, ``crosvm run --config``, Cloud Hypervisor's command line, the
JSON Schema and the documentation. It needs msgspec (the extra ``ch``), which takes as long to
import as Python itself to start: nothing that ``crosvm run`` needs without a configuration file
may import this package.
"""
