# SPDX-License-Identifier: BSD-3-Clause
"""The vhost ABI, compared with the kernel's request numbers, which contain structure sizes."""

from __future__ import annotations

from struct import Struct

import pytest

from seccomp.constants_x86_64 import CONSTANTS
from sys_util import vhost

NUMBERS = [name for name in vars(vhost) if name.startswith("VHOST_")]


@pytest.mark.parametrize("name", NUMBERS)
def test_number_is_the_kernels(name: str) -> None:
    assert getattr(vhost, name) == CONSTANTS[name]


@pytest.mark.parametrize(
    ("request_number", "layout"),
    [
        (vhost.VHOST_GET_FEATURES, vhost._U64),
        (vhost.VHOST_SET_FEATURES, vhost._U64),
        (vhost.VHOST_SET_MEM_TABLE, vhost._MEMORY),
        (vhost.VHOST_SET_VRING_NUM, vhost._STATE),
        (vhost.VHOST_SET_VRING_BASE, vhost._STATE),
        (vhost.VHOST_GET_VRING_BASE, vhost._STATE),
        (vhost.VHOST_SET_VRING_ADDR, vhost._ADDR),
        (vhost.VHOST_SET_VRING_KICK, vhost._FILE),
        (vhost.VHOST_NET_SET_BACKEND, vhost._FILE),
        (vhost.VHOST_VSOCK_SET_GUEST_CID, vhost._U64),
        (vhost.VHOST_VSOCK_SET_RUNNING, vhost._INT),
    ],
)
def test_structure_has_the_size_in_the_number(request_number: int, layout: Struct) -> None:
    assert layout.size == request_number >> 16 & 0x3FFF


def test_region_has_four_words() -> None:
    assert vhost._REGION.size == 32
