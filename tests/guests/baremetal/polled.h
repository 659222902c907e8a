/* SPDX-License-Identifier: BSD-3-Clause */
/* A driver that polls, for measuring devices: long queues, kicks where the device asks for one,
 * no interrupts. Its fast half runs at privilege level 3. Built twice, as start.S is: for virtio
 * over PCI, and with a PVH note for virtio over memory-mapped registers. */

#ifndef POLLED_H
#define POLLED_H

#ifndef QUEUE_SIZE
#define QUEUE_SIZE 128
#endif

#include "virtio_mmio.h"
#include "user_mode.h"

#define DESC_INDIRECT 4
#define FEATURE_INDIRECT_DESC (1u << 28)
#define FEATURE_EVENT_IDX (1u << 29)
#define COM_MCR 4
#define COM_MCR_DTR_RTS 3
#define COM_LSR_DATA 0x01

#ifdef PVH
#define find_device(d, type, nth, queues) mmio_find(d, type, nth, queues)
#define start_device(d) mmio_start(d)
#define write_kick write32
#else
#define find_device(d, type, nth, queues) device_find(d, 0x1040 + (type), nth, queues)
#define start_device(d) device_start(d)
#define write_kick write16
#endif

static inline uint64_t read_tsc(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence\n\trdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static inline void compiler_barrier(void)
{
	__asm__ volatile("" : : : "memory");
}

/* Want no interrupt: what is used next is never the index that this names. */
static inline void polled_no_interrupt(struct device *d, int index)
{
	struct ring *r = d->ring[index];

	r->avail.flags = 1;
	r->avail.used_event = r->used.idx + 0x8000;
}

/* Offer `count` chains, which are in the ring already, and kick where that is wanted. */
static inline void polled_publish(struct device *d, int index, uint16_t count)
{
	struct ring *r = d->ring[index];
	uint16_t old = r->avail.idx, new = old + count;
	int kick;

	if (!count)
		return;
	compiler_barrier();
	r->avail.idx = new;
	__asm__ volatile("lock orq $0, (%%rsp)" : : : "memory", "cc");
	if (d->features & FEATURE_EVENT_IDX)
		kick = (uint16_t)(new - r->used.avail_event - 1) < (uint16_t)(new - old);
	else
		kick = !(r->used.flags & 1);
	if (kick)
		write_kick(d->notify[index], index);
}

/* Wait for the word of whoever measures, on the serial port. */
static inline void wait_for_start(void)
{
	outb(COM1 + COM_MCR, COM_MCR_DTR_RTS); /* ready to receive */
	put("ready\n");
	while (!(inb(COM1 + COM_LSR) & COM_LSR_DATA))
		;
	inb(COM1);
}

static inline void put_clock(void)
{
	put("clock ");
	put_hex(read_tsc(), 16);
	put("\n");
}

#endif
