/* SPDX-License-Identifier: BSD-3-Clause */
/* Send an interrupt to itself through the local APIC, and wait for it. */

#include "interrupt.h"

#define VECTOR 0x40

void main(void)
{
	enable_interrupt(VECTOR);
	for (uint32_t sent = 1; sent <= 3; sent++) {
		write32(LAPIC + LAPIC_ICR_LOW, ICR_TO_SELF | VECTOR);
		while (interrupts < sent)
			wait_for_interrupt();
	}
	put("interrupts: ");
	put_hex(interrupts, 1);
	put("\n");
}
