# SPDX-License-Identifier: BSD-3-Clause
"""The declarations of ``engine/ffi/engine.h`` for the type checker."""

from collections.abc import Callable
from typing import Literal, overload

from _typeshed import ReadableBuffer
from typing_extensions import Buffer

class CData: ...

class Region(CData):
    gpa: int
    size_bytes: int
    base: CData
    blocks: CData
    block_bytes: int

class Regions(CData):
    def __getitem__(self, at: int) -> Region: ...

class Position(CData):
    next_avail: int
    avail_idx: int
    next_used: int
    signalled: int
    must_signal: bool

class Disk(CData):
    fd: int
    read_only: bool
    writethrough: bool
    cached: bool
    capacity_sectors: int

class Limits(CData):
    chains: int
    bytes: int
    poll_ns: int

class Turn(CData):
    outcome: int
    interrupts: int
    requests: int
    bytes_from_guest: int
    bytes_to_guest: int

class Tap(CData):
    fd: int
    merge: bool
    host_checksums: bool
    host_gso: bytes
    guest_flags: int
    guest_gso: bytes
    expected: int

class NetTurn(CData):
    outcome: int
    interrupts: int
    chains: int
    bytes_from_guest: int
    bytes_to_guest: int
    frames: int
    large: int
    frame_bytes: int
    error: int

class _Ffi:
    NULL: CData
    @overload
    def new(self, cdecl: Literal["struct crosvm_region[]"], init: int) -> Regions: ...
    @overload
    def new(
        self,
        cdecl: Literal["struct crosvm_position *"],
        init: tuple[int, int, int, int, bool],
    ) -> Position: ...
    @overload
    def new(
        self,
        cdecl: Literal["struct crosvm_layout *"],
        init: tuple[int, int, int, int, bool, bool],
    ) -> CData: ...
    @overload
    def new(self, cdecl: Literal["struct crosvm_block_queue *[]"], init: list[CData]) -> CData: ...
    @overload
    def new(self, cdecl: Literal["struct crosvm_disk *"]) -> Disk: ...
    @overload
    def new(self, cdecl: Literal["struct crosvm_limits *"]) -> Limits: ...
    @overload
    def new(self, cdecl: Literal["struct crosvm_turn *"]) -> Turn: ...
    @overload
    def new(self, cdecl: Literal["struct crosvm_tap *"]) -> Tap: ...
    @overload
    def new(self, cdecl: Literal["struct crosvm_net_turn *"]) -> NetTurn: ...
    def cast(self, cdecl: str, value: int) -> CData: ...
    def buffer(self, cdata: CData, size: int) -> Buffer: ...
    def from_buffer(self, cdecl: str, buffer: ReadableBuffer) -> CData: ...
    def gc(self, cdata: CData, destructor: Callable[[CData], None]) -> CData: ...

class _Lib:
    def crosvm_engine_memory(
        self, regions: CData, count: int, bitmap: CData, bitmap_words: int
    ) -> CData: ...
    def crosvm_engine_free_memory(self, memory: CData) -> None: ...
    def crosvm_engine_block_queue(
        self, memory: CData, layout: CData, position: Position, kick_fd: int, call_fd: int
    ) -> CData: ...
    def crosvm_engine_free_block_queue(self, queue: CData) -> None: ...
    def crosvm_engine_pool(self, threads: int) -> CData: ...
    def crosvm_engine_free_pool(self, pool: CData) -> None: ...
    def crosvm_engine_block_turn(
        self,
        queue: CData,
        others: CData,
        count: int,
        disk: Disk,
        limits: Limits,
        pool: CData,
        turn: Turn,
    ) -> None: ...
    def crosvm_engine_count_in(self, queue: CData, cells: CData) -> None: ...
    def crosvm_engine_take(self, queue: CData, position: Position) -> None: ...
    def crosvm_engine_give(self, queue: CData, position: Position) -> None: ...
    def crosvm_engine_net_queue(
        self,
        memory: CData,
        layout: CData,
        position: Position,
        call_fd: int,
        receives: bool,
    ) -> CData: ...
    def crosvm_engine_free_net_queue(self, queue: CData) -> None: ...
    def crosvm_engine_net_turn(
        self, queue: CData, tap: Tap, limits: Limits, turn: NetTurn
    ) -> None: ...
    def crosvm_engine_net_frame(self, queue: CData) -> CData: ...
    def crosvm_engine_net_take(self, queue: CData, position: Position) -> None: ...
    def crosvm_engine_net_give(self, queue: CData, position: Position) -> None: ...
    def crosvm_engine_exit_on_panic(self) -> None: ...
    def crosvm_engine_report_panics(self, fd: int, head: bytes, length: int) -> None: ...

ffi: _Ffi
lib: _Lib
