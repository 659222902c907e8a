/* SPDX-License-Identifier: BSD-3-Clause */
/* Wait for the power button and power off (ACPI 6.5 §4.8.3), as an operating system does. */

#include "guest.h"

#define PM1_STATUS 0x600
#define PM1_CONTROL 0x604
#define POWER_BUTTON (1 << 8)
#define SLEEP_ENABLE (1 << 13)

void main(void)
{
	put("waiting\n");
	while (!(inw(PM1_STATUS) & POWER_BUTTON))
		;
	put("pressed\n");
	outw(PM1_CONTROL, SLEEP_ENABLE);
	for (;;)
		;
}
