# SPDX-License-Identifier: BSD-3-Clause
"""16550A UART as on a PC's COM port (National Semiconductor PC16550D data sheet).

The line is infinitely fast: a byte that the guest writes reaches the ``ByteSink`` before the
access ends, so the transmitter always reads as empty. Input comes from the host through
``receive`` and waits *on the line* until the guest takes it: a FIFO reset does not lose it, and
nothing arrives before the guest asserts RTS (or enables the receive interrupt, where it never
used RTS), so that input typed ahead of a boot survives the driver's probing. Input of the host
never overruns: ``room`` says how much the host may hand over, and ``on_room`` is called when there
is room again.

One console character costs the guest two exits, a THR write and an LSR read; ``write`` and
``read`` try these two first.
"""

from __future__ import annotations

from collections import deque

from devices.legacy_ports import COM_PORT_LENGTH
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.bus import IrqLine


# Register offsets. DLL and DLM stand in for the first two while LCR.DLAB is set.
THR: Final = 0  # RBR when read
IER: Final = 1
FCR: Final = 2  # IIR when read
LCR: Final = 3
MCR: Final = 4
LSR: Final = 5
MSR: Final = 6
SCR: Final = 7

IER_RDI: Final = 0x01
IER_THRI: Final = 0x02
IER_RLSI: Final = 0x04
IER_MSI: Final = 0x08
IER_ALL: Final = 0x0F  # bit 6 must not stick, or Linux takes the port for an XScale one

IIR_MSI: Final = 0x00
IIR_NO_INT: Final = 0x01
IIR_THRI: Final = 0x02
IIR_RDI: Final = 0x04
IIR_RLSI: Final = 0x06
IIR_FIFO_ENABLED: Final = 0xC0

FCR_ENABLE: Final = 0x01
FCR_CLEAR_RX: Final = 0x02

LCR_DLAB: Final = 0x80

MCR_DTR: Final = 0x01
MCR_RTS: Final = 0x02
MCR_OUT1: Final = 0x04
MCR_OUT2: Final = 0x08
MCR_LOOP: Final = 0x10
MCR_ALL: Final = 0x1F

LSR_DR: Final = 0x01
LSR_OE: Final = 0x02
LSR_BI: Final = 0x10
LSR_IDLE: Final = 0x60  # both transmitter registers are empty
LSR_ERRORS: Final = 0x1E
# Not a register bit: the guest has not read LSR since the transmitter interrupt was raised.
_LSR_WATCHED: Final = 0x100
_LSR_SLOW: Final = LSR_ERRORS | _LSR_WATCHED

MSR_DELTA_CTS: Final = 0x01
MSR_DELTA_DSR: Final = 0x02
MSR_TRAILING_RI: Final = 0x04
MSR_DELTA_DCD: Final = 0x08
MSR_CTS: Final = 0x10
MSR_DSR: Final = 0x20
MSR_RI: Final = 0x40
MSR_DCD: Final = 0x80
MSR_CONNECTED: Final = MSR_CTS | MSR_DSR | MSR_DCD

FIFO_BYTES: Final = 16
# How many bytes of input may wait for the guest: enough to pass on a paste in few steps, few enough
# for a guest that never reads.
LINE_BYTES: Final = 256
LOW_LINE_BYTES: Final = LINE_BYTES // 2

_BYTES: Final = tuple(bytes((value,)) for value in range(256))


class ByteSink(Protocol):
    """Where the bytes go that a guest sends."""

    def write(self, data: bytes) -> None:
        """Take ``data``. Never blocks and never raises: a sink in trouble drops bytes."""
        ...


def _ignore() -> None:
    """Stand in for an ``on_room`` that nobody set."""


class Uart:
    """One serial port; eight byte-wide registers."""

    def __init__(self, sink: ByteSink, irq: IrqLine) -> None:
        self.on_room: Callable[[], None] = _ignore
        self._put = sink.write
        self._irq = irq
        self._level = False
        self._line: deque[int] = deque()
        self.reset()

    def reset(self) -> None:
        """Return to the start of the machine; input that waits is for the next boot."""
        self._ier = 0
        self._lcr = 0
        self._mcr = 0
        self._lsr = LSR_IDLE
        self._msr = MSR_CONNECTED
        self._scr = 0
        self._divisor = 1  # 115200 bit/s
        self._fifo_enabled = False
        self._thr_pending = False
        self._plain = True  # neither DLAB nor loopback: offset 0 is the transmitter
        self._rts_used = False
        self._listening = False
        self._fifo: deque[int] = deque()
        self._update()

    # The guest's side

    def read(self, offset: int, size: int) -> int:
        if offset == LSR and size == 1:
            lsr = self._lsr
            if lsr & _LSR_SLOW:
                return self._read_line_status()
            return lsr
        if size != 1:
            return self._read_wide(offset, size)
        return self._read_register(offset & 7)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == THR and size == 1 and self._plain:
            self._put(_BYTES[value & 0xFF])
            if self._ier & IER_THRI:
                self._raise_thr_empty()
            return
        if size != 1:  # the bus splits wide accesses to byte-wide chips into consecutive ports
            for i in range(min(size, COM_PORT_LENGTH - (offset & 7))):
                self.write((offset & 7) + i, 1, (value >> (8 * i)) & 0xFF)
            return
        self._write_register(offset & 7, value & 0xFF)

    # The host's side; called with the device-model lock held

    @property
    def room(self) -> int:
        """How many bytes ``receive`` takes now."""
        return LINE_BYTES - len(self._line)

    def receive(self, data: bytes) -> int:
        """Put ``data`` on the line and return how many of its bytes found room."""
        taken = data[: self.room]
        self._line.extend(taken)
        self._update()
        return len(taken)

    def send_break(self) -> None:
        """Send the guest a break, which Linux takes as the SysRq key."""
        if self._listening and not self._mcr & MCR_LOOP:
            self._fifo.appendleft(0)
            while len(self._fifo) > FIFO_BYTES:
                self._fifo.pop()
            self._lsr |= LSR_BI
            self._update()

    # Reading

    def _read_wide(self, offset: int, size: int) -> int:
        value = 0
        for i in range(size):
            at = (offset & 7) + i
            value |= (self.read(at, 1) if at < COM_PORT_LENGTH else 0xFF) << (8 * i)
        return value

    def _read_register(self, offset: int) -> int:
        if offset == THR:
            return self._divisor & 0xFF if self._lcr & LCR_DLAB else self._read_received()
        if offset == IER:
            return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
        if offset == FCR:
            return self._read_interrupt_id()
        if offset == MSR:
            return self._read_modem_status()
        return {LCR: self._lcr, MCR: self._mcr, SCR: self._scr}.get(offset, self._lsr & 0xFF)

    def _read_received(self) -> int:
        if not self._lsr & LSR_DR:
            return 0
        if self._fifo:
            value = self._fifo.popleft()
            self._update()
            return value
        value = self._line.popleft()
        self._update()
        if len(self._line) == LOW_LINE_BYTES or not self._line:
            self.on_room()
        return value

    def _read_interrupt_id(self) -> int:
        source = self._interrupt_source()
        if source == IIR_THRI:
            self._thr_pending = False
            self._update()
        return source | (IIR_FIFO_ENABLED if self._fifo_enabled else 0)

    def _read_line_status(self) -> int:
        lsr = self._lsr
        self._lsr = lsr & ~_LSR_SLOW
        if lsr & LSR_ERRORS:
            self._update()
        return lsr & 0xFF

    def _read_modem_status(self) -> int:
        msr = self._msr
        self._msr = msr & 0xF0
        self._update()
        return msr

    # Writing

    def _write_register(self, offset: int, value: int) -> None:
        if offset == THR:
            self._write_first(value)
        elif offset == IER:
            self._write_interrupt_enable(value)
        elif offset == FCR:
            self._write_fifo_control(value)
        elif offset == LCR:
            self._lcr = value
            self._plain = not (value & LCR_DLAB or self._mcr & MCR_LOOP)
        elif offset == MCR:
            self._write_modem_control(value & MCR_ALL)
        elif offset == SCR:
            self._scr = value
        # LSR and MSR are read-only outside factory tests.

    def _write_first(self, value: int) -> None:
        """Write offset 0 while it is not the plain transmitter."""
        if self._lcr & LCR_DLAB:
            self._divisor = (self._divisor & 0xFF00) | value
            return
        if len(self._fifo) < (FIFO_BYTES if self._fifo_enabled else 1):
            self._fifo.append(value)
        else:
            self._lsr |= LSR_OE
            if not self._fifo_enabled:  # without a FIFO the newer byte replaces the older
                self._fifo[0] = value
        self._thr_pending = True
        self._update()

    def _write_interrupt_enable(self, value: int) -> None:
        if self._lcr & LCR_DLAB:
            self._divisor = (self._divisor & 0xFF) | (value << 8)
            return
        changed = self._ier ^ (value & IER_ALL)
        self._ier = value & IER_ALL
        if changed & IER_THRI:
            # Enabling it with an empty transmitter interrupts at once; Linux tests for that.
            self._thr_pending = bool(self._ier & IER_THRI)
            self._lsr &= ~_LSR_WATCHED
        self._update()

    def _write_fifo_control(self, value: int) -> None:
        enabled = bool(value & FCR_ENABLE)
        if enabled != self._fifo_enabled or (enabled and value & FCR_CLEAR_RX):
            self._fifo.clear()
        self._fifo_enabled = enabled
        self._update()

    def _write_modem_control(self, value: int) -> None:
        self._mcr = value
        self._rts_used = self._rts_used or bool(value & MCR_RTS)
        self._plain = not (value & MCR_LOOP or self._lcr & LCR_DLAB)
        lines = MSR_CONNECTED
        if value & MCR_LOOP:
            lines = (
                (MSR_CTS if value & MCR_RTS else 0)
                | (MSR_DSR if value & MCR_DTR else 0)
                | (MSR_RI if value & MCR_OUT1 else 0)
                | (MSR_DCD if value & MCR_OUT2 else 0)
            )
        changed = (self._msr ^ lines) >> 4
        deltas = changed & (MSR_DELTA_CTS | MSR_DELTA_DSR | MSR_DELTA_DCD)
        if self._msr & MSR_RI and not lines & MSR_RI:
            deltas |= MSR_TRAILING_RI
        self._msr = lines | (self._msr & 0x0F) | deltas
        self._update()

    # Interrupts

    def _raise_thr_empty(self) -> None:
        """Interrupt for a byte that just left.

        The line is edge-triggered, so a driver that looks at LSR instead of IIR needs a new edge
        for each refill. A driver that fills the FIFO without looking gets one edge for all of it.
        """
        if self._thr_pending and self._lsr & _LSR_WATCHED:
            return
        self._thr_pending = False
        self._update()
        self._thr_pending = True
        self._lsr |= _LSR_WATCHED
        self._update()

    def _interrupt_source(self) -> int:
        ier = self._ier
        if ier & IER_RLSI and self._lsr & LSR_ERRORS:
            return IIR_RLSI
        if ier & IER_RDI and self._lsr & LSR_DR:
            return IIR_RDI
        if ier & IER_THRI and self._thr_pending:
            return IIR_THRI
        if ier & IER_MSI and self._msr & 0x0F:
            return IIR_MSI
        return IIR_NO_INT

    def _update(self) -> None:
        """Recompute what follows from the state: LSR.DR and the interrupt line."""
        self._listening = bool(self._mcr & MCR_RTS) or (
            not self._rts_used and bool(self._ier & IER_RDI)
        )
        heard = self._line and self._listening and not self._mcr & MCR_LOOP
        if self._fifo or heard:
            self._lsr |= LSR_DR
        else:
            self._lsr &= ~LSR_DR
        level = self._interrupt_source() != IIR_NO_INT
        if level != self._level:
            self._level = level
            self._irq.set_level(level)
