# SPDX-License-Identifier: BSD-3-Clause
"""The defects that ``tests.fuzz.planted`` plants still have their places in the engine's source."""

from __future__ import annotations

import pytest

from tests.fuzz.planted import DEFECTS, PROJECT, Defect


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_defect_has_its_place(defect: Defect) -> None:
    source = (PROJECT / "engine" / "src" / defect.file).read_text()
    assert defect.spoil(source) != source


def test_defect_without_a_place_is_told() -> None:
    with pytest.raises(LookupError, match=r"ring\.rs has no such place"):
        Defect("nothing", "ring.rs", "no such line", "").spoil("another line")
