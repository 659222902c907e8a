/* SPDX-License-Identifier: BSD-3-Clause */
/* Memory modules that come, by the registers. A byte from COM1 says what to do:
 *
 *   s  look at all slots, take note of what is new, and use the first and last word of each module;
 *   a  write every value to every register, for slots that there are and are not;
 *   q  end.
 */

#include "guest.h"

#define COM_MCR 4
#define COM_MCR_DTR_RTS 3
#define COM_LSR_DATA_READY 1

#define REGISTERS 0xfea00040u
#define REGISTERS_BYTES 24
#define LENGTH 8
#define FLAGS 20
#define ENABLED 1
#define INSERTING 2
#define SLOTS 8

/* The boot's page tables end at 4 GiB. This one has the GiB after them, in pages of 2 MiB. */
#define PDPTE ((volatile uint64_t *)0xa000)
#define PRESENT_WRITABLE 3
#define HUGE 0x80
#define HOT_GIB 4

static uint64_t directory[512] __attribute__((aligned(4096)));

static uint8_t get(void)
{
	while (!(inb(COM1 + COM_LSR) & COM_LSR_DATA_READY))
		;
	return inb(COM1);
}

static void map(void)
{
	for (uint64_t at = 0; at < 512; at++)
		directory[at] = (uint64_t)HOT_GIB << 30 | at << 21 | HUGE | PRESENT_WRITABLE;
	PDPTE[HOT_GIB] = (uintptr_t)directory | PRESENT_WRITABLE;
}

static uint64_t pair(uint32_t offset)
{
	uint64_t low = read32(REGISTERS + offset);

	return low | (uint64_t)read32(REGISTERS + offset + 4) << 32;
}

static void scan(void)
{
	for (uint32_t slot = 0; slot < SLOTS; slot++) {
		write32(REGISTERS, slot);
		uint8_t flags = read8(REGISTERS + FLAGS);
		if (!(flags & ENABLED))
			continue;
		uint64_t base = pair(0), length = pair(LENGTH);
		put_hex(base, 9);
		put("+");
		put_hex(length, 8);
		if (flags & INSERTING) {
			write8(REGISTERS + FLAGS, INSERTING);
			put(" new");
		}
		write64(base, 0x1234);
		write64(base + length - 8, 0x5678);
		put(read64(base) == 0x1234 && read64(base + length - 8) == 0x5678 ? " good " : " bad ");
	}
	put("scanned\n");
}

static void attack(void)
{
	static const uint32_t selections[] = {0, 1, 7, 8, 255, 256, 0x80000000, 0xffffffff};

	for (uint32_t value = 0; value < 256; value++) {
		write32(REGISTERS, selections[value % 8]);
		write8(REGISTERS + FLAGS, value ^ 0x5a);
		write8(REGISTERS + FLAGS, value);
	}
	for (uint32_t offset = 0; offset < REGISTERS_BYTES + 8; offset++) {
		write8(REGISTERS + offset, 0xff);
		write16(REGISTERS + offset, 0xffff);
		write32(REGISTERS + offset, 0xffffffff);
		write64(REGISTERS + offset, ~0ull);
		read8(REGISTERS + offset);
		read16(REGISTERS + offset);
		read32(REGISTERS + offset);
		read64(REGISTERS + offset);
	}
	put("attacked\n");
}

void main(void)
{
	uint8_t key;

	map();
	outb(COM1 + COM_MCR, COM_MCR_DTR_RTS); /* ready to receive */
	put("memory\n");
	while ((key = get()) != 'q') {
		if (key == 's')
			scan();
		else if (key == 'a')
			attack();
	}
	put("bye\n");
}
