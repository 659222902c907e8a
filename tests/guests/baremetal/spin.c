/* SPDX-License-Identifier: BSD-3-Clause */
/* Print a line on COM1, then count in memory for ever: something to pause, resume and stop. */

#include "guest.h"

void main(void)
{
	volatile uint64_t *counter = (volatile uint64_t *)0x100000;

	put("spinning\n");
	for (;;)
		++*counter;
}
