# SPDX-License-Identifier: BSD-3-Clause
"""The one thing that setup.cfg cannot say: which native modules cffi builds."""

from setuptools import setup

setup(
    cffi_modules=[
        "kvm/ffi/build_kvm.py:ffibuilder",
        "sys_util/ffi/build_linux.py:ffibuilder",
    ]
)
