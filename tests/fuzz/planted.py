# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.fuzz.planted [WORD…]``: put defects into the engine, and have them found.

Each is a change of the source in a copy of the crate, which is built there. The comparison with
Python (``engine_disk.py``) or the crate's own tests must find it. The first run is without a
defect, and must find nothing. With words only defects whose names have one of them are planted. The
exit status is 1 if a defect is not found.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT: Final = Path(__file__).parents[2]
CHAINS: Final = 20_000
# A wake-up is lost once in some thousand requests.
ROUNDS: Final = "3"
SEED: Final = 5
# Who needs more processor time is in an endless loop. The other limit is for one that sleeps; it
# leaves room for a machine that does something else.
MAX_CPU_SECONDS: Final = 600
PATIENCE_SECONDS: Final = 3600


class Defect(NamedTuple):
    """What is wrong, in which file, and how it gets there."""

    name: str
    file: str
    right: str
    wrong: str

    def spoil(self, text: str) -> str:
        """Return the text of the file with the defect in it.

        Raises:
            LookupError: the source has changed, and this defect must be written anew.
        """
        if text.count(self.right) != 1:
            raise LookupError(f"{self.name}: {self.file} has no such place, or several")
        return text.replace(self.right, self.wrong)


DEFECTS: Final = (
    Defect(
        "an empty writable descriptor before a readable one is accepted",
        "ring.rs",
        "writing = true;",
        "writing |= length != 0;",
    ),
    Defect(
        "the used index is published before the element",
        "ring.rs",
        "        self.used.store_u32(element, u32::from(head));",
        "        self.used.store_u16(IDX, next.wrapping_add(1));\n"
        "        self.used.store_u32(element, u32::from(head));",
    ),
    Defect(
        "the last page of what was written is not marked dirty",
        "memory.rs",
        "for page in first..=last.min(",
        "for page in first..last.min(",
    ),
    Defect(
        "what the kernel wrote is not marked dirty",
        "block.rs",
        "        ring.memory().mark_dirty(slice);",
        "        let _ = slice;",
    ),
    Defect(
        "the event index of interrupts is off by one",
        "ring.rs",
        "new.wrapping_sub(used_event).wrapping_sub(1) <",
        "new.wrapping_sub(used_event) <",
    ),
    Defect(
        "the event index of kicks is off by one",
        "ring.rs",
        ".store_u16(RING + 8 * self.size, self.position.next_avail);",
        ".store_u16(RING + 8 * self.size, self.position.next_avail.wrapping_sub(1));",
    ),
    Defect(
        "nothing looks at the ring again after kicks were asked for",
        "ring.rs",
        "        fence(Ordering::SeqCst);\n        self.has_more()",
        "        fence(Ordering::SeqCst);\n        false",
    ),
    Defect(
        "the last sector is beyond the end",
        "request.rs",
        "end <= disk.capacity_sectors",
        "end < disk.capacity_sectors",
    ),
    Defect(
        "the sector after the last one is inside",
        "request.rs",
        "end <= disk.capacity_sectors",
        "end <= disk.capacity_sectors + 1",
    ),
    Defect(
        "a short transfer is taken for a whole one",
        "block.rs",
        "        if done != Some(request.length) {\n            return false;\n        }\n",
        "        let _ = done;\n",
    ),
    Defect(
        "a chain that Python must serve is taken",
        "block.rs",
        "else {\n                self.ring.unpop();\n",
        "else {\n",
    ),
    Defect(
        "the available index may be as far ahead as it likes",
        "ring.rs",
        "usize::from(pending) > self.size",
        "usize::from(pending) > 2 * self.size",
    ),
    Defect(
        "a loop of descriptors may be longer than the queue by one",
        "ring.rs",
        "(usize::from(head), self.size, self.size)",
        "(usize::from(head), self.size, self.size + 1)",
    ),
    Defect(
        "a turn returns with transfers under way",
        "block.rs",
        "        if !self.transfers.finish_all(&mut self.ring, pool, turn) {\n",
        "        if false {\n",
    ),
    Defect(
        "a flush does not wait for the writes before it",
        "block.rs",
        "                        self.transfers.finish_all(&mut self.ring, pool, turn)\n"
        "                            && self.carry_out(disk, request, turn)\n",
        "                        self.carry_out(disk, request, turn)\n",
    ),
    Defect(
        "transfers are published in the order in which they end",
        "transfers.rs",
        "                Progress::UnderWay => break,\n",
        "                Progress::UnderWay => {}\n",
    ),
    Defect(
        "what was started before a transfer that failed is forgotten",
        "transfers.rs",
        "        ring.unpop_all(self.started.len());\n",
        "        ring.unpop_all(0);\n",
    ),
    Defect(
        "a read that misses the page cache is taken for done",
        "block.rs",
        "Some(count) if count == request.length => {",
        "Some(_) if disk.cached => {",
    ),
    Defect(
        "a request goes back before the reads that were put off before it",
        "block.rs",
        "        if self.transfers.is_empty() {\n            give_back",
        "        if true {\n            give_back",
    ),
    Defect(
        "a host that cannot tell what is in the page cache is asked each time",
        "block.rs",
        "                self.knows_misses = false;\n",
        "                self.knows_misses = true;\n",
    ),
)


def copy_of_crate(folder: Path) -> Path:
    """Copy the crate into ``folder`` and return where it is, without what was built of it."""
    crate = folder / "engine"
    built = shutil.ignore_patterns("target", "__pycache__", "*.so", "*.o", "*.c")
    shutil.copytree(PROJECT / "engine", crate, ignore=built)
    return crate


def checks() -> Iterator[tuple[str, list[str]]]:
    """Yield what looks for a defect, by name."""
    fuzz = [sys.executable, "-m", "tests.fuzz", "engine", "--json"]
    yield "the comparison", [*fuzz, "--seed", str(SEED), "--count", str(CHAINS)]
    yield "the crate's tests", ["cargo", "test", "--locked", "--offline", "--quiet"]


def run(command: list[str], crate: Path) -> bool:
    """Run a command that imports the copy as ``engine``; return whether it succeeds."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "CROSVM_ENGINE_ROUNDS": ROUNDS}
    folder = crate if command[0] == "cargo" else crate.parent
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            preexec_fn=limit_processor_time,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def limit_processor_time() -> None:
    """Have the kernel end this process after ``MAX_CPU_SECONDS``."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS))


def build(crate: Path) -> None:
    """Build the module of the copy.

    Raises:
        CalledProcessError: it cannot be built.
    """
    command = [sys.executable, "engine/ffi/build_engine.py"]
    subprocess.run(command, cwd=crate.parent, check=True, capture_output=True)


def finder(defect: Defect | None, folder: Path) -> str | None:
    """Plant a defect into a copy in ``folder`` and return what finds it first."""
    crate = copy_of_crate(folder)
    if defect is not None:
        source = crate / "src" / defect.file
        source.write_text(defect.spoil(source.read_text()))
    build(crate)
    return next((name for name, command in checks() if not run(command, crate)), None)


def main() -> int:
    """Plant one defect after the other and say what found it."""
    failed = False
    words = sys.argv[1:] or [""]
    chosen = [one for one in DEFECTS if any(word in one.name for word in words)]
    for defect in (None, *chosen):
        with tempfile.TemporaryDirectory() as folder:
            found_by = finder(defect, Path(folder))
        failed |= (found_by is None) is (defect is not None)
        name = "no defect" if defect is None else defect.name
        sys.stdout.write(f"{name}: {found_by or 'not found'}\n")
        sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
