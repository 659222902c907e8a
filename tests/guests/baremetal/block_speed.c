/* SPDX-License-Identifier: BSD-3-Clause */
/* How long disks take for a request: each case of a table with random, aligned requests, so many at
 * a time, as cycles of the time stamp counter. As in Linux, the buffers of a request are in an
 * indirect table. Every disk has the same size. */

#include "polled.h"

#define TYPE_BLOCK 2
#define FEATURE_FLUSH (1u << 9)
#define MAX_DEPTH 32
#define MAX_BYTES 65536
#define BUFFERS 3
#define DISKS 3
#define WARM_UP 500
#define SECTOR_BYTES 512

struct measurement {
	char kind; /* r or w */
	int disk;
	uint32_t bytes, depth, requests;
	uint64_t cycles;
	uint32_t errors;
};

static struct measurement measurements[] = {
	{ 'r', 0, 4096, 1, 20000, 0, 0 },  { 'r', 0, 4096, 4, 30000, 0, 0 },
	{ 'r', 0, 4096, 32, 40000, 0, 0 }, { 'w', 0, 4096, 32, 20000, 0, 0 },
	{ 'r', 0, 65536, 1, 8000, 0, 0 },  { 'r', 0, 65536, 32, 10000, 0, 0 },
	{ 'r', 1, 4096, 32, 20000, 0, 0 }, { 'w', 1, 4096, 32, 20000, 0, 0 },
	{ 'r', 2, 4096, 1, 1500, 0, 0 },   { 'r', 2, 4096, 32, 8000, 0, 0 },
};

/* What is behind each disk: a file in the host's page cache, one in memory, one that is read from
 * its disk each time. */
static const char *const names[] = { "cached", "memory", "direct" };
static struct device disks[DISKS];
static struct block_header headers[MAX_DEPTH];
static volatile uint8_t statuses[MAX_DEPTH];
static struct desc tables[MAX_DEPTH][BUFFERS] __attribute__((aligned(16)));
static uint8_t data[MAX_DEPTH][MAX_BYTES] __attribute__((aligned(4096)));
static uint64_t capacity; /* in sectors */
static uint64_t random_state = 88172645463325252ULL;

static uint64_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static void describe(struct measurement *m, int slot)
{
	struct desc *desc = tables[slot];
	int write = m->kind == 'w';

	headers[slot].type = write;
	desc[0] = (struct desc){ (uintptr_t)&headers[slot], 16, DESC_NEXT, 1 };
	desc[1] = (struct desc){ (uintptr_t)data[slot], m->bytes,
				 DESC_NEXT | (write ? 0 : DESC_WRITE), 2 };
	desc[2] = (struct desc){ (uintptr_t)&statuses[slot], 1, DESC_WRITE, 0 };
	disks[m->disk].ring[0]->desc[slot] =
		(struct desc){ (uintptr_t)desc, sizeof(tables[slot]), DESC_INDIRECT, 0 };
}

static void stage(struct measurement *m, int slot, uint16_t at)
{
	uint32_t sectors = m->bytes / SECTOR_BYTES;

	headers[slot].sector = next_random() % (capacity / sectors) * sectors;
	statuses[slot] = 0xff;
	disks[m->disk].ring[0]->avail.ring[at % QUEUE_SIZE] = slot;
}

static void exchange(struct measurement *m, uint32_t requests)
{
	struct device *d = &disks[m->disk];
	struct ring *r = d->ring[0];
	uint16_t seen = r->used.idx;
	uint32_t offered = 0, done = 0;

	for (; offered < m->depth; offered++)
		stage(m, offered, r->avail.idx + offered);
	polled_no_interrupt(d, 0);
	polled_publish(d, 0, m->depth);
	while (done < requests) {
		uint16_t again = 0, used = r->used.idx;

		for (; seen != used; seen++, done++) {
			int slot = r->used.ring[seen % QUEUE_SIZE].id;

			m->errors += statuses[slot] != 0;
			if (offered < requests) {
				stage(m, slot, r->avail.idx + again++);
				offered++;
			}
		}
		polled_no_interrupt(d, 0);
		polled_publish(d, 0, again);
	}
}

static void measure(void *argument)
{
	struct measurement *m = argument;
	uint64_t began;

	for (uint32_t slot = 0; slot < m->depth; slot++)
		describe(m, slot);
	exchange(m, WARM_UP);
	began = read_tsc();
	exchange(m, m->requests);
	m->cycles = read_tsc() - began;
}

static void report(struct measurement *m)
{
	put("block ");
	put_char(m->kind);
	put(" ");
	put(names[m->disk]);
	put(" ");
	put_hex(m->bytes, 8);
	put(" ");
	put_hex(m->depth, 8);
	put(" ");
	put_hex(m->requests, 8);
	put(" ");
	put_hex(m->cycles, 16);
	put(" ");
	put_hex(m->errors, 8);
	put("\n");
}

static const char *prepare(void)
{
	for (int i = 0; i < DISKS; i++) {
		struct device *d = &disks[i];
		const char *missing;

#ifdef PVH
		/* QEMU fills the last place first. */
		missing = find_device(d, TYPE_BLOCK, DISKS - 1 - i, 1);
#else
		missing = find_device(d, TYPE_BLOCK, i, 1);
#endif
		if (missing)
			return missing;
		d->features = FEATURE_FLUSH | FEATURE_INDIRECT_DESC | FEATURE_EVENT_IDX;
		missing = start_device(d);
		if (missing)
			return missing;
		capacity = read32(d->v.device) | (uint64_t)read32(d->v.device + 4) << 32;
	}
	prepare_user_mode();
	return NULL;
}

void main(void)
{
	const char *missing = prepare();

	if (missing) {
		put("no ");
		put(missing);
		put("\n");
		return;
	}
	wait_for_start();
	put_clock();
	for (unsigned i = 0; i < sizeof(measurements) / sizeof(*measurements); i++) {
		call_as_user(measure, &measurements[i]);
		report(&measurements[i]);
	}
	put_clock();
}
