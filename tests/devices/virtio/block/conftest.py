# SPDX-License-Identifier: BSD-3-Clause
"""Everything about disks, once with the engine and once without."""

from __future__ import annotations

import pytest

from devices.virtio.queue import native


@pytest.fixture(autouse=True, params=["engine", "python"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who serves the queues."""
    if request.param == "engine" and not native.IS_BUILT:
        fakes = "fake_calls" in request.fixturenames
        pytest.skip("it fakes calls of Python" if fakes else "the engine is not built here")
    monkeypatch.setattr(native, "IS_BUILT", request.param == "engine")
    return str(request.param)


@pytest.fixture
def fake_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Python serve in a test that puts something in place of Python's calls of the host."""
    monkeypatch.setattr(native, "IS_BUILT", False)
