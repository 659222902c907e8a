# SPDX-License-Identifier: BSD-3-Clause
"""One test host for the session, and a folder in it for every test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.support import TESTER, Lab
from tests.kvmhost.fixture import KvmHost, session

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder: they all boot guests."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def kvmhost() -> Iterator[KvmHost]:
    yield from session()


@pytest.fixture
def lab(kvmhost: KvmHost) -> Iterator[Lab]:
    """Where root runs crosvm."""
    lab = Lab(kvmhost, "root")
    yield lab
    lab.close()


@pytest.fixture
def tester_lab(kvmhost: KvmHost) -> Iterator[Lab]:
    """Where an ordinary user of the group kvm runs crosvm."""
    lab = Lab(kvmhost, TESTER)
    yield lab
    lab.close()


@pytest.fixture
def user_lab(kvmhost: KvmHost, user: str) -> Iterator[Lab]:
    """Where the test's parameter ``user`` runs crosvm."""
    lab = Lab(kvmhost, user)
    yield lab
    lab.close()


@pytest.fixture(params=["root", TESTER])
def any_lab(kvmhost: KvmHost, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Where root, and then an ordinary user, runs crosvm."""
    lab = Lab(kvmhost, str(request.param))
    yield lab
    lab.close()
