# SPDX-License-Identifier: BSD-3-Clause
"""The UART against what drivers do with it; the sequences follow Linux' 8250 driver."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.legacy_ports import COM_PORT_LENGTH
from devices.serial import (
    FCR,
    FIFO_BYTES,
    IER,
    LCR,
    LINE_BYTES,
    LSR,
    MCR,
    MSR,
    SCR,
    THR,
    Uart,
)

IIR = FCR
RBR = THR


class FakeIrq:
    def __init__(self) -> None:
        self.levels: list[bool] = []

    def high(self) -> bool:
        return bool(self.levels and self.levels[-1])

    @property
    def edges(self) -> int:
        return self.levels.count(True)

    def set_level(self, asserted: bool) -> None:
        self.levels.append(asserted)


class FakeSink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


@pytest.fixture
def irq() -> FakeIrq:
    return FakeIrq()


@pytest.fixture
def sink() -> FakeSink:
    return FakeSink()


@pytest.fixture
def uart(sink: FakeSink, irq: FakeIrq) -> Uart:
    return Uart(sink, irq)


def run(uart: Uart, steps: list[tuple[str, int, int]]) -> None:
    for number, (direction, register, value) in enumerate(steps):
        if direction == "out":
            uart.write(register, 1, value)
        else:
            assert uart.read(register, 1) == value, f"step {number}: register {register}"


AUTOCONFIG_EXISTS = [
    ("in", IER, 0x00),
    ("out", IER, 0x00),
    ("in", IER, 0x00),
    ("out", IER, 0x0F),
    ("in", IER, 0x0F),
    ("out", IER, 0x00),
]
AUTOCONFIG_LOOPBACK = [
    ("in", MCR, 0x00),
    ("out", MCR, 0x1A),  # LOOP | OUT2 | RTS
    ("in", MSR, 0x92),  # DCD | CTS, and DSR went away
    ("out", MCR, 0x00),
    ("in", MSR, 0xB2),
]
AUTOCONFIG_16550A = [
    ("out", LCR, 0xBF),
    ("out", FCR, 0x00),
    ("out", LCR, 0x00),
    ("out", FCR, 0x01),
    ("in", IIR, 0xC1),
]
AUTOCONFIG_NO_EFR = [
    ("out", LCR, 0x80),
    ("in", FCR, 0xC1),  # an EFR would read as zero
    ("out", LCR, 0xBF),
    ("in", FCR, 0xC1),
    ("out", LCR, 0x00),
]
AUTOCONFIG_NOT_NATSEMI = [
    ("in", MCR, 0x00),
    ("out", LCR, 0xE0),
    ("in", FCR, 0xC1),
    ("out", LCR, 0x00),
    ("out", MCR, 0x10),
    ("out", LCR, 0xE0),
    ("in", FCR, 0xC1),
    ("out", LCR, 0x00),
    ("out", MCR, 0x00),
    ("in", MSR, 0xBB),
]
AUTOCONFIG_NOT_16750 = [
    ("out", FCR, 0x21),
    ("in", IIR, 0xC1),
    ("out", FCR, 0x01),
    ("out", LCR, 0x80),
    ("out", FCR, 0x21),
    ("in", IIR, 0xC1),
    ("out", FCR, 0x01),
    ("out", LCR, 0x00),
]
AUTOCONFIG_NOT_XSCALE = [("out", IER, 0x40), ("in", IER, 0x00)]
STARTUP_CLEAR = [
    ("out", FCR, 0x01),
    ("out", FCR, 0x07),
    ("out", FCR, 0x00),
    ("in", LSR, 0x60),
    ("in", RBR, 0x00),
    ("in", IIR, 0x01),
    ("in", MSR, 0xB0),
]
STARTUP_THRE_REASSERTS = [
    ("out", IER, 0x02),
    ("in", IIR, 0x02),
    ("out", IER, 0x00),
    ("out", IER, 0x02),
    ("in", IIR, 0x02),
    ("out", IER, 0x00),
    ("in", IIR, 0x01),
]
STARTUP_TX_INTERRUPT = [
    ("out", LCR, 0x03),
    ("out", MCR, 0x08),
    ("out", IER, 0x02),
    ("in", LSR, 0x60),
    ("in", IIR, 0x02),
    ("out", IER, 0x00),
]


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(AUTOCONFIG_EXISTS, id="exists"),
        pytest.param(AUTOCONFIG_LOOPBACK, id="loopback"),
        pytest.param(AUTOCONFIG_16550A, id="16550A"),
        pytest.param(AUTOCONFIG_16550A + AUTOCONFIG_NO_EFR, id="no EFR"),
        pytest.param(AUTOCONFIG_16550A + AUTOCONFIG_NOT_NATSEMI, id="not NS16550A"),
        pytest.param(AUTOCONFIG_16550A + AUTOCONFIG_NOT_16750, id="not TI16750"),
        pytest.param(AUTOCONFIG_NOT_XSCALE, id="not XScale"),
        pytest.param([("out", SCR, 0xA5), ("in", SCR, 0xA5)], id="scratch"),
        pytest.param(STARTUP_CLEAR, id="startup clears"),
        pytest.param(STARTUP_THRE_REASSERTS, id="TX interrupt reasserts"),
        pytest.param(STARTUP_TX_INTERRUPT, id="TX interrupt"),
        pytest.param(
            AUTOCONFIG_EXISTS
            + AUTOCONFIG_LOOPBACK
            + AUTOCONFIG_16550A
            + AUTOCONFIG_NO_EFR
            + AUTOCONFIG_NOT_NATSEMI
            + AUTOCONFIG_NOT_16750
            + AUTOCONFIG_NOT_XSCALE
            + STARTUP_CLEAR
            + STARTUP_THRE_REASSERTS
            + STARTUP_TX_INTERRUPT,
            id="all of it",
        ),
    ],
)
def test_linux_probe_finds_a_16550a(
    uart: Uart, sink: FakeSink, steps: list[tuple[str, int, int]]
) -> None:
    run(uart, steps)
    assert sink.data == b""


def test_fifo_size_test_counts_16_bytes_and_an_overrun(uart: Uart) -> None:
    run(uart, [("out", FCR, 0x07), ("out", MCR, 0x10)])
    for value in range(256):
        uart.write(THR, 1, value)
    assert uart.read(LSR, 1) == 0x63
    received = []
    while uart.read(LSR, 1) & 0x01:
        received.append(uart.read(RBR, 1))
    assert received == list(range(FIFO_BYTES))


def test_loopback_without_fifo_keeps_the_newest_byte(uart: Uart) -> None:
    run(uart, [("out", MCR, 0x10), ("out", THR, 0x41), ("out", THR, 0x42), ("in", RBR, 0x42)])


def test_divisor_is_kept_apart_from_data_and_interrupts(uart: Uart, sink: FakeSink) -> None:
    run(
        uart,
        [
            ("out", IER, 0x05),
            ("out", LCR, 0x83),
            ("out", THR, 0x0C),
            ("out", IER, 0x12),
            ("in", THR, 0x0C),
            ("in", IER, 0x12),
            ("out", LCR, 0x03),
            ("in", IER, 0x05),
            ("out", THR, 0x78),
        ],
    )
    assert sink.data == b"x"


def test_console_writes_polled_raise_no_interrupt(uart: Uart, sink: FakeSink, irq: FakeIrq) -> None:
    for value in b"hello\n":
        assert uart.read(LSR, 1) == 0x60
        uart.write(THR, 1, value)
    assert sink.data == b"hello\n"
    assert irq.levels == []


def test_tty_output_gets_one_edge_for_each_fifo_fill(
    uart: Uart, sink: FakeSink, irq: FakeIrq
) -> None:
    uart.write(FCR, 1, 0x07)
    uart.write(IER, 1, 0x02)
    for fill in range(1, 4):
        assert irq.high()
        assert irq.edges == fill
        assert uart.read(IIR, 1) == 0xC2
        assert not irq.high()
        assert uart.read(LSR, 1) == 0x60
        for _ in range(FIFO_BYTES):
            uart.write(THR, 1, 0x78)
    uart.write(IER, 1, 0x00)
    assert not irq.high()
    assert len(sink.data) == 3 * FIFO_BYTES


def test_driver_that_reads_only_lsr_gets_a_new_edge(uart: Uart, irq: FakeIrq) -> None:
    uart.write(IER, 1, 0x02)
    for refill in range(1, 4):
        assert irq.edges == refill
        uart.read(LSR, 1)
        uart.write(THR, 1, 0x78)


def test_receive_interrupts_until_the_last_byte_is_read(uart: Uart, irq: FakeIrq) -> None:
    run(uart, [("out", FCR, 0x01), ("out", MCR, 0x0B), ("out", IER, 0x05)])
    assert uart.receive(b"ab") == 2
    assert irq.high()
    run(
        uart,
        [("in", IIR, 0xC4), ("in", LSR, 0x61), ("in", RBR, 0x61), ("in", RBR, 0x62)],
    )
    assert not irq.high()
    run(uart, [("in", IIR, 0xC1), ("in", LSR, 0x60), ("in", RBR, 0x00)])


def test_received_data_has_priority_over_an_empty_transmitter(uart: Uart) -> None:
    run(uart, [("out", MCR, 0x0B), ("out", IER, 0x03)])
    uart.receive(b"a")
    run(uart, [("in", IIR, 0x04), ("in", RBR, 0x61), ("in", IIR, 0x02), ("in", IIR, 0x01)])


def test_input_waits_until_the_driver_asserts_rts(uart: Uart) -> None:
    uart.receive(b"early")
    run(uart, AUTOCONFIG_EXISTS + AUTOCONFIG_LOOPBACK + STARTUP_CLEAR + [("in", LSR, 0x60)])
    uart.write(MCR, 1, 0x0B)
    run(uart, [("in", LSR, 0x61), ("in", RBR, ord("e"))])


def test_input_reaches_a_driver_that_never_sets_rts(uart: Uart) -> None:
    uart.receive(b"x")
    run(uart, [("out", IER, 0x01), ("in", LSR, 0x61), ("in", RBR, 0x78)])


def test_dropping_rts_holds_the_input_back(uart: Uart, irq: FakeIrq) -> None:
    run(uart, [("out", MCR, 0x0B), ("out", IER, 0x01), ("out", MCR, 0x09)])
    uart.receive(b"x")
    assert uart.read(LSR, 1) == 0x60
    assert not irq.high()
    uart.write(MCR, 1, 0x0B)
    assert irq.high()


def test_fifo_reset_does_not_lose_input_on_the_line(uart: Uart) -> None:
    uart.write(MCR, 1, 0x0B)
    uart.receive(b"x")
    run(uart, [("out", FCR, 0x07), ("in", LSR, 0x61), ("in", RBR, 0x78)])


def test_receive_takes_no_more_than_its_room_and_says_when_there_is_more(uart: Uart) -> None:
    calls: list[int] = []
    uart.on_room = lambda: calls.append(uart.room)
    uart.write(MCR, 1, 0x0B)
    assert uart.receive(bytes(2 * LINE_BYTES)) == LINE_BYTES
    assert uart.room == 0
    assert uart.receive(b"x") == 0
    for _ in range(LINE_BYTES):
        uart.read(RBR, 1)
    assert calls == [LINE_BYTES // 2, LINE_BYTES]


def test_break_reads_as_a_null_byte_with_its_status(uart: Uart, irq: FakeIrq) -> None:
    run(uart, [("out", MCR, 0x0B), ("out", IER, 0x05)])
    uart.send_break()
    uart.receive(b"t")
    assert irq.high()
    run(
        uart,
        [("in", IIR, 0x06), ("in", LSR, 0x71), ("in", RBR, 0x00), ("in", LSR, 0x61)],
    )
    assert uart.read(RBR, 1) == ord("t")


def test_breaks_do_not_pile_up(uart: Uart) -> None:
    uart.write(MCR, 1, 0x0B)
    for _ in range(1000):
        uart.send_break()
    count = 0
    while uart.read(LSR, 1) & 0x01:
        uart.read(RBR, 1)
        count += 1
    assert count == FIFO_BYTES


def test_modem_lines_interrupt_in_loopback(uart: Uart, irq: FakeIrq) -> None:
    run(uart, [("out", MCR, 0x10), ("in", MSR, 0x0B), ("out", IER, 0x08), ("out", MCR, 0x14)])
    assert not irq.high()  # a rising RI is no event, only its end is
    run(uart, [("out", MCR, 0x10)])
    assert irq.high()
    run(uart, [("in", IIR, 0x00), ("in", MSR, 0x04), ("in", IIR, 0x01)])
    assert not irq.high()


def test_wide_access_is_split_into_consecutive_ports(uart: Uart, sink: FakeSink) -> None:
    uart.write(THR, 2, 0x0541)
    assert sink.data == b"A"
    assert uart.read(IER, 1) == 0x05
    assert uart.read(MCR, 4) == 0x00B06000
    assert uart.read(SCR, 4) == 0xFFFFFF00


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_hostile_accesses_never_raise_and_stay_in_range(uart: Uart, size: int) -> None:
    uart.receive(bytes(LINE_BYTES))
    for value in (0, 1, 0x55, 0x80, 0xAA, 0xFF, 0x1F1F1F1F_1F1F1F1F, (1 << 64) - 1):
        for offset in range(COM_PORT_LENGTH):
            uart.write(offset, size, value & ((1 << (8 * size)) - 1))
            for read_offset in range(COM_PORT_LENGTH):
                assert 0 <= uart.read(read_offset, size) < 1 << (8 * size)
    assert uart.room >= 0


def test_interrupt_line_changes_only_when_the_level_does(uart: Uart, irq: FakeIrq) -> None:
    for value in range(256):
        for register in (IER, MCR, FCR, THR, LCR):
            uart.write(register, 1, value)
            uart.read(IIR, 1)
            uart.read(RBR, 1)
    assert all(a != b for a, b in zip(irq.levels, irq.levels[1:], strict=False))


ACCESSES = st.lists(
    st.tuples(st.sampled_from(["read", "write", "receive"]), st.integers(0, 7), st.integers(0, 255))
)


@given(ACCESSES)
def test_interrupt_line_always_agrees_with_the_interrupt_id(
    accesses: list[tuple[str, int, int]],
) -> None:
    irq = FakeIrq()
    uart = Uart(FakeSink(), irq)
    for kind, register, value in accesses:
        if kind == "read":
            uart.read(register, 1)
        elif kind == "write":
            uart.write(register, 1, value)
        else:
            uart.receive(bytes(value))
        before = irq.high()
        assert (uart.read(IIR, 1) & 0x01 == 0) == before
