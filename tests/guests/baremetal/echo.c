/* SPDX-License-Identifier: BSD-3-Clause */
/* Answer every byte from COM1 in angle brackets, its value in hex, until a 'q' comes. */

#include "guest.h"

#define COM_MCR 4
#define COM_MCR_DTR_RTS 3
#define COM_LSR_DATA_READY 1

static uint8_t get(void)
{
	while (!(inb(COM1 + COM_LSR) & COM_LSR_DATA_READY))
		;
	return inb(COM1);
}

void main(void)
{
	uint8_t key;

	outb(COM1 + COM_MCR, COM_MCR_DTR_RTS); /* ready to receive */
	put("echo\n");
	while ((key = get()) != 'q') {
		put("<");
		put_hex(key, 2);
		put(">");
	}
	put("bye\n");
}
