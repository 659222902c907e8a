# SPDX-License-Identifier: BSD-3-Clause
"""Help for Cloud Hypervisor's options names all that is refused or has no effect."""

from __future__ import annotations

import pytest

from crosvm_py.manual.ch_pages import ch_pages
from crosvm_py.vm_config import unsupported
from crosvm_py.vm_config.option_help import describe_options, options_with_help
from crosvm_py.vm_config.options import FLAGS, VALUES, build_config

EFFECTS = [
    *((key, f"refused: {reason}") for key, reason in unsupported._REFUSED.items()),
    *((key, f"no effect: {reason}") for key, reason in unsupported._IGNORED.items()),
]


def options_of(key: str) -> set[str]:
    """Return the options to which a key of the configuration belongs."""
    parts = key.split(".")
    if parts[:2] == ["memory", "zones"]:
        return {"--memory-zone"}
    if parts[0] == "payload":
        return {f"--{parts[1]}"}
    return {name for name, row in VALUES.items() if row.key == parts[0]} | {
        name for name, flag in FLAGS.items() if flag == parts[0]
    }


def help_by_option() -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for line in describe_options():
        if line.startswith("-"):
            name = line.split(" ")[0].rstrip(":")
        found[name] = found.get(name, "") + line + "\n"
    return found


# There is no option for an IOMMU alone.
@pytest.mark.parametrize(("key", "remark"), [each for each in EFFECTS if each[0] != "iommu"])
def test_help_names_what_is_refused_or_ignored(key: str, remark: str) -> None:
    texts = help_by_option()
    options = options_of(key)
    assert options
    for option in options:
        lines = [line for line in texts[option].splitlines() if remark in line]
        leaf = key.split(".")[-1]
        assert any(leaf in line or line.startswith("-") for line in lines), texts[option]


@pytest.mark.parametrize("name", FLAGS)
def test_flag_is_marked_if_and_only_if_it_is_refused(name: str) -> None:
    (text,) = (option.text for option in options_with_help() if option.name == name)
    problems = unsupported.unsupported(build_config({name: []}))
    assert ("refused: " in text) == any(each.place == FLAGS[name] for each in problems)


def test_manual_page_has_the_same_words() -> None:
    page = "".join(ch_pages().values())
    for option in ("--rtc", "--tpm", "--restore"):
        (text,) = (each.text for each in options_with_help() if each.name == option)
        assert "refused: " in text
        assert text.partition("refused: ")[2] in page
