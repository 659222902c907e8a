/* SPDX-License-Identifier: BSD-3-Clause */
/* Attacks on queues: their registers, their rings, their chains, and resets in their midst. */

#ifndef ATTACK_QUEUES_H
#define ATTACK_QUEUES_H

#include "rings.h"

#define COMMON_QUEUE_RESET 0x3a
#define NEEDS_RESET 0x40
#define INDIRECT 4

static int failures;

static void expect(int condition, const char *what)
{
	if (condition)
		return;
	put("FAILED: ");
	put(what);
	put("\n");
	failures++;
}

static uint32_t random_state = 2463534242u;

static uint32_t random32(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 17;
	random_state ^= random_state << 5;
	return random_state;
}

/* Poison every register of a running queue: none may move. */
static void move_rings(struct device *d)
{
	static const struct {
		uint8_t offset, bytes;
	} registers[] = { { COMMON_QUEUE_SIZE, 2 },	  { COMMON_QUEUE_MSIX_VECTOR, 2 },
			  { COMMON_QUEUE_DESC, 4 },	  { COMMON_QUEUE_DESC + 4, 4 },
			  { COMMON_QUEUE_DRIVER, 4 },	  { COMMON_QUEUE_DRIVER + 4, 4 },
			  { COMMON_QUEUE_DEVICE, 4 },	  { COMMON_QUEUE_DEVICE + 4, 4 },
			  { COMMON_QUEUE_ENABLE, 2 } };
	static const uint32_t poison[] = { 0, 1, 4, 0x1000, 0x41414140, 0xffffffff };
	uintptr_t common = d->v.common;

	write16(common + COMMON_QUEUE_SELECT, 0);
	for (size_t i = 0; i < sizeof(registers) / sizeof(registers[0]); i++) {
		uintptr_t at = common + registers[i].offset;
		int wide = registers[i].bytes == 4;
		uint32_t before = wide ? read32(at) : read16(at);

		for (size_t j = 0; j < sizeof(poison) / sizeof(poison[0]); j++) {
			if (wide)
				write32(at, poison[j]);
			else
				write16(at, poison[j]);
			expect((wide ? read32(at) : read16(at)) == before, "a register moved");
		}
		expect(block_io(d, 0, i % 4), "request after poison");
	}
}

/* Indices that no driver writes: the device asks for a reset, and comes back by it. */
static void jump_avail(struct device *d)
{
	static const uint16_t jumps[] = { QUEUE_SIZE + 1, 0x8000, 0xffff, 0x7fff };

	for (size_t i = 0; i < sizeof(jumps) / sizeof(jumps[0]); i++) {
		device_start(d);
		expect(block_io(d, 0, 0), "request before the jump");
		d->ring[0]->avail.idx += jumps[i];
		write16(d->notify[0], 0);
		while (!(device_status(d) & NEEDS_RESET))
			;
		write16(d->notify[0], 0); /* to a queue that nobody serves */
	}
	device_start(d);
	d->ring[0]->avail.ring[0] = 0xffff; /* a head outside the table */
	d->ring[0]->avail.idx = 1;
	write16(d->notify[0], 0);
	while (!(device_status(d) & NEEDS_RESET))
		;
}

/* Chains that are wrong: each comes back with nothing written, and the next one works. */
static void malformed_chains(struct device *d)
{
	static const struct desc wrong[] = {
		{ 0x1000, 16, DESC_NEXT, 0 },		 /* a loop */
		{ 0x1000, 16, DESC_NEXT, QUEUE_SIZE },	 /* outside the table */
		{ 0x1000, 16, DESC_NEXT, 0xffff },
		{ 0xffffffffffffffff, 16, 0, 0 },	 /* wraps */
		{ 0x8000000000000000, 1, DESC_WRITE, 0 },
		{ 16 << 20, 1, DESC_WRITE, 0 },		 /* behind the last byte of memory */
		{ (16 << 20) - 1, 2, DESC_WRITE, 0 },
		{ 0, 0xffffffff, DESC_WRITE, 0 },
		{ LAPIC, 16, 0, 0 },			 /* registers, not memory */
		{ 0xf4000000, 16, DESC_WRITE, 0 },
		{ PCI_WINDOW, 4096, DESC_WRITE, 0 },
		{ 0x1000, 32, INDIRECT, 0 },		 /* not negotiated */
		{ 0, 0, 0, 0 },				 /* no header, no status */
		{ 0x1000, 15, 0, 0 },			 /* half a header */
		{ 0x1000, 16, 0, 0 },			 /* no status */
	};
	struct ring *r = d->ring[0];

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		r->desc[0] = wrong[i];
		expect(request(d, 0, 0) == 0, "a malformed chain");
		expect(block_io(d, 0, 1), "request after a malformed chain");
	}
}

/* The rings themselves as buffers, of requests that write and that read. */
static void rings_as_buffers(struct device *d, struct device *other)
{
	struct ring *r = d->ring[0];
	const volatile void *targets[] = { r->desc,		&r->avail, &r->used,
					   other->ring[0]->desc };

	for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]); i++) {
		for (int type = 0; type < 2; type++) {
			block_describe(d, type, 2);
			r->desc[1].addr = (uintptr_t)targets[i];
			r->desc[1].len = 512; /* over everything that follows, too */
			offer(d, 0, 0);
			for (int spin = 0; spin < 2000; spin++)
				(void)device_status(d);
			device_start(d);
		}
		device_start(other);
	}
	for (int i = 0; i < 512; i++) /* sector 2 as it was */
		block_data[i] = 0x12;
	expect(block_io(d, 1, 2), "sector 2 as it was");
}

#define DATA (4u << 20) /* far from the program; devices may write here what they like */
#define DATA_BYTES 0x2000

/* A descriptor that may be right: mostly in the data, now and then anywhere at all. */
static struct desc random_desc(struct device *d)
{
	const uintptr_t places[] = { (uintptr_t)d->ring[0], (uintptr_t)&d->ring[0]->used,
				     (16 << 20) - 1,	    16 << 20,
				     LAPIC,		    0xfffffffffffffff0 };
	struct desc desc = { DATA + random32() % DATA_BYTES, random32() % 600, random32() % 4,
			     random32() % QUEUE_SIZE };

	switch (random32() % 12) {
	case 0:
		desc.addr = places[random32() % (sizeof(places) / sizeof(places[0]))];
		break;
	case 1:
		desc.len = random32();
		break;
	case 2:
		desc.flags = random32();
		break;
	case 3:
		desc.next = random32();
	}
	return desc;
}

/* Whatever comes into its head, in each queue of a device. The numbers in the data are large, or
 * a little more than `least`, so that a balloon takes no page that the program needs. */
static void act_at_random(struct device *d, uint32_t least, int rounds)
{
	for (uintptr_t at = DATA; at < DATA + DATA_BYTES; at += 4)
		write32(at, random32() % 3 ? least + random32() % 16 : random32() | 0x80000000);
	while (rounds--) {
		int index = random32() % d->queues;
		struct ring *r = d->ring[index];

		for (int i = 0; i < QUEUE_SIZE; i++) {
			if (random32() % 3)
				r->desc[i] = random_desc(d);
			r->avail.ring[i] = random32() % (random32() % 50 ? QUEUE_SIZE : 0x10000);
		}
		r->avail.idx += random32() % (random32() % 50 ? QUEUE_SIZE : 0x10000);
		write16(d->notify[index], index);
		if (device_status(d) & NEEDS_RESET || rounds % 64 == 0)
			device_start(d);
	}
}

/* Steps out of order, features that are not on offer, features after the fact. */
static void break_negotiation(struct device *d)
{
	uintptr_t common = d->v.common, status = common + COMMON_STATUS;

	for (int i = 0; i < 200; i++) {
		write8(status, random32());
		write32(common + COMMON_DRIVER_FEATURE_SELECT, random32() % 5);
		write32(common + COMMON_DRIVER_FEATURE, random32());
		if (i % 10 == 0)
			write8(status, 0);
	}
	write8(status, 0);
	while (device_status(d))
		;
	write8(status, STATUS_DRIVER_OK);
	expect(device_status(d) == 0, "DRIVER_OK before everything");
	write8(status, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
	write32(common + COMMON_DRIVER_FEATURE_SELECT, 0);
	write32(common + COMMON_DRIVER_FEATURE, 0xffffffff);
	write8(status, 11);
	expect(device_status(d) == 3, "FEATURES_OK with features of nobody's");
	device_start(d);
	write32(common + COMMON_DRIVER_FEATURE_SELECT, 1);
	write32(common + COMMON_DRIVER_FEATURE, 0);
	expect(read32(common + COMMON_DRIVER_FEATURE) == FEATURE_VERSION_1_HIGH,
	       "features after the fact");
	write8(status, 3);
	expect(device_status(d) == 15, "status bits taken back");
	expect(block_io(d, 0, 3), "request after all that");
}

/* Reset the device, and switch off what carries it, while it works. */
static void reset_in_flight(struct device *d)
{
	for (int i = 0; i < 40; i++) {
		device_start(d);
		block_describe(d, i % 2 ? 0 : 8, 0);
		for (int j = 0; j < QUEUE_SIZE; j++)
			offer(d, 0, 0);
		if (i % 4 == 1)
			pci_write32(d->v.slot, PCI_COMMAND, 0);
		else if (i % 4 == 2)
			write16(d->v.common + COMMON_QUEUE_RESET, 1);
		write8(d->v.common + COMMON_STATUS, 0);
		for (int j = 0; j < 3; j++) /* into the reset */
			write16(d->notify[0], 0);
	}
}

/* Kick queues that run, that do not and that do not exist, without a request. */
static void kick_storm(struct device *d)
{
	for (int i = 0; i < 100000; i++)
		write16(d->notify[0], 0);
	for (int i = 0; i < 2000; i++)
		write32(d->v.notify + (i % 1024) * 4, i);
}

#endif
