/* SPDX-License-Identifier: BSD-3-Clause */
/* One interrupt vector through the local APIC. */

#ifndef INTERRUPT_H
#define INTERRUPT_H

#include "guest.h"

#define LAPIC 0xfee00000
#define LAPIC_ID 0x20
#define LAPIC_TPR 0x80
#define LAPIC_SPURIOUS 0xf0
#define LAPIC_ICR_LOW 0x300
#define LAPIC_ICR_HIGH 0x310
#define LAPIC_ENABLED 0x100
#define SPURIOUS_VECTOR 0xff
#define ICR_TO_SELF 0x40000

extern volatile uint32_t interrupts;
void interrupt_entry(void);
void load_idt(const void *pointer);

struct gate {
	uint16_t offset_low, selector, flags, offset_middle;
	uint32_t offset_high, zero;
};

static struct gate idt[256];

static inline void set_handler(int vector, void (*entry)(void))
{
	uintptr_t handler = (uintptr_t)entry;

	idt[vector] = (struct gate){
		.offset_low = handler & 0xffff,
		.selector = 0x10,
		.flags = 0x8e00, /* present, interrupt gate */
		.offset_middle = handler >> 16 & 0xffff,
		.offset_high = handler >> 32,
	};
}

static inline void set_gate(int vector)
{
	set_handler(vector, interrupt_entry);
}

/* Take `vector` from now on, whenever interrupts are on. */
static inline void enable_interrupt(int vector)
{
	static struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) pointer;

	outb(0x21, 0xff); /* nothing from the PICs: a firmware may have left the timer on */
	outb(0xa1, 0xff);
	set_gate(vector);
	set_gate(SPURIOUS_VECTOR);
	pointer.limit = sizeof(idt) - 1;
	pointer.base = (uintptr_t)idt;
	load_idt(&pointer);
	write32(LAPIC + LAPIC_TPR, 0);
	write32(LAPIC + LAPIC_SPURIOUS, LAPIC_ENABLED | SPURIOUS_VECTOR);
}

/* Sleep until an interrupt was handled; HLT follows STI without a gap for one to be lost in. */
static inline void wait_for_interrupt(void)
{
	__asm__ volatile("sti\n\thlt\n\tcli" : : : "memory");
}

#endif
