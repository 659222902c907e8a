/* SPDX-License-Identifier: BSD-3-Clause */
/* Write what no other memory holds (tests/baremetal/test_core_dump.py), say so, and go on. */

#include "guest.h"

#define PATTERN_GPA 0x800000
#define WORDS 4096
#define FACTOR 0x9e3779b97f4a7c15

void main(void)
{
	for (uint64_t i = 0; i < WORDS; i++)
		write64(PATTERN_GPA + 8 * i, (i + 1) * FACTOR);
	put("written\n");
	for (;;)
		inb(COM1 + COM_LSR);
}
