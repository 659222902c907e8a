/* SPDX-License-Identifier: BSD-3-Clause */
/* Leave the guest again and again, one way after the other; a letter before each and at the end. */

#include "guest.h"

#define ROUNDS 10000
#define I8042_STATUS 0x64
#define ECAM 0xf4000000
#define COM_IER 1
#define COM_IER_THRI 2

static void read_port(void)
{
	inb(I8042_STATUS);
}

static void read_mmio(void)
{
	read32(ECAM);
}

/* The transmitter is empty, so that this raises the line and the next one lowers it. */
static void toggle_irq(void)
{
	outb(COM1 + COM_IER, COM_IER_THRI);
	outb(COM1 + COM_IER, 0);
}

static void print(void)
{
	outb(COM1, '.');
}

static void (*const ways[])(void) = { read_port, read_mmio, toggle_irq, print };

void main(void)
{
	char letter = 'A';

	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		put_char(letter++);
		for (int round = 0; round < ROUNDS; round++)
			ways[i]();
	}
	put_char(letter);
}
