/* SPDX-License-Identifier: BSD-3-Clause */
/* CPUs that come and go, by the registers. A byte from COM1 says what to do:
 *
 *   s  look at all CPUs, take note of what is new, and start those that have come;
 *   e  eject every CPU;
 *   a  write every value to every register, for CPUs that there are and are not;
 *   r  reset the machine;
 *   q  end.
 */

#include "interrupt.h"

#define COM_MCR 4
#define COM_MCR_DTR_RTS 3
#define COM_LSR_DATA_READY 1

#define CPU_SELECT 0xfea00020u
#define CPU_STATUS 0xfea00024u
#define REGISTERS_BYTES 12
#define ENABLED 1
#define INSERTING 2
#define REMOVING 4
#define EJECT 8
#define CPUS 4

#define RESET_PORT 0xcf9
#define RESET_VALUE 6

#define LAPIC_ICR_HIGH 0x310
#define ICR_INIT 0x4500
#define ICR_STARTUP 0x4600

/* Where a CPU starts in real mode, and the word that it increments there before it halts. */
#define START_PAGE 0x90
#define STARTS ((volatile uint16_t *)(START_PAGE * 0x1000 + 0x100))

static const uint8_t start_code[] = {
	0xf0, 0x2e, 0xff, 0x06, 0x00, 0x01, /* lock incw %cs:0x100 */
	0xfa,                               /* cli */
	0xf4,                               /* hlt */
	0xeb, 0xfd,                         /* jmp to hlt */
};

static uint8_t get(void)
{
	while (!(inb(COM1 + COM_LSR) & COM_LSR_DATA_READY))
		;
	return inb(COM1);
}

static void start(uint32_t cpu)
{
	uint16_t before = *STARTS;

	write32(LAPIC + LAPIC_ICR_HIGH, cpu << 24);
	write32(LAPIC + LAPIC_ICR_LOW, ICR_INIT);
	write32(LAPIC + LAPIC_ICR_HIGH, cpu << 24);
	write32(LAPIC + LAPIC_ICR_LOW, ICR_STARTUP | START_PAGE);
	while (*STARTS == before)
		;
}

static void scan(void)
{
	for (uint32_t cpu = 0; cpu < CPUS; cpu++) {
		write32(CPU_SELECT, cpu);
		uint8_t status = read8(CPU_STATUS);
		put_hex(status, 1);
		if (status & INSERTING) {
			write8(CPU_STATUS, INSERTING);
			start(cpu);
			put("+");
		}
		if (status & REMOVING)
			write8(CPU_STATUS, REMOVING);
	}
	put(" scanned\n");
}

static void eject(void)
{
	for (uint32_t cpu = 0; cpu < CPUS; cpu++) {
		write32(CPU_SELECT, cpu);
		write8(CPU_STATUS, EJECT);
	}
	put("ejected\n");
}

static void attack(void)
{
	static const uint32_t selections[] = {0, 1, 2, 3, 4, 254, 255, 256, 0x80000000, 0xffffffff};

	for (uint32_t value = 0; value < 256; value++) {
		write32(CPU_SELECT, selections[value % 10]);
		write8(CPU_STATUS, value ^ 0x5a);
		write8(CPU_STATUS, value);
	}
	for (uint32_t offset = 0; offset < REGISTERS_BYTES + 8; offset++) {
		write8(CPU_SELECT + offset, 0xff);
		write16(CPU_SELECT + offset, 0xffff);
		write32(CPU_SELECT + offset, 0xffffffff);
		write64(CPU_SELECT + offset, ~0ull);
		read8(CPU_SELECT + offset);
		read16(CPU_SELECT + offset);
		read32(CPU_SELECT + offset);
		read64(CPU_SELECT + offset);
	}
	/* Start CPUs that are not there, and are not to start before they are. */
	for (uint32_t cpu = 1; cpu < CPUS; cpu++) {
		write32(LAPIC + LAPIC_ICR_HIGH, cpu << 24);
		write32(LAPIC + LAPIC_ICR_LOW, ICR_INIT);
		write32(LAPIC + LAPIC_ICR_LOW, ICR_STARTUP | START_PAGE);
	}
	put("attacked ");
	put_hex(*STARTS, 4);
	put("\n");
}

void main(void)
{
	uint8_t key;

	for (unsigned int at = 0; at < sizeof(start_code); at++)
		((volatile uint8_t *)(START_PAGE * 0x1000))[at] = start_code[at];
	*STARTS = 0;
	outb(COM1 + COM_MCR, COM_MCR_DTR_RTS); /* ready to receive */
	put("cpus\n");
	while ((key = get()) != 'q') {
		if (key == 's')
			scan();
		else if (key == 'e')
			eject();
		else if (key == 'a')
			attack();
		else if (key == 'r')
			outb(RESET_PORT, RESET_VALUE);
	}
	put("bye\n");
}
