/* SPDX-License-Identifier: BSD-3-Clause */
/* Report a panic to the pvpanic device, as Linux does, and reset. */

#include "guest.h"

#define PVPANIC 0x505
#define PVPANIC_PANICKED 1

void main(void)
{
	put("about to panic\n");
	outb(PVPANIC, PVPANIC_PANICKED);
}
