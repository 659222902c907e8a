/* SPDX-License-Identifier: BSD-3-Clause */
/* How long a network card takes for a frame, small ones and large segments, out and in, as cycles of
 * the time stamp counter. What comes in waits in the TAP already: the guest offers no buffer before
 * it is told to. */

#define QUEUE_SIZE 256

#include "polled.h"

#define TYPE_NET 1
#define FEATURES (1u << 0 | 1u << 1 | 1u << 7 | 1u << 11 | 1u << 15 | FEATURE_INDIRECT_DESC | \
		  FEATURE_EVENT_IDX) /* CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, MRG_RXBUF */
#define RECEIVE 0
#define TRANSMIT 1
#define HEADER_BYTES 12
#define NUM_BUFFERS 10 /* its offset in the header */
#define PAGES 16
#define DEPTH 64
#define SMALL 64
#define LARGE 65536
#define SEGMENTS (54 + 45 * 1448) /* whole ones: Linux cuts what is not below 64 KiB */
#define QUIET_CYCLES 50000000ULL

struct measurement {
	const char *direction;
	uint32_t bytes, frames;
	uint64_t cycles;
};

static struct measurement out[] = { { "out", SMALL, 100000, 0 }, { "out", LARGE, 10000, 0 } };
static struct measurement in[] = { { "in", SMALL, 8000, 0 }, { "in", SEGMENTS, 400, 0 } };

static struct device card;
static uint8_t frame[HEADER_BYTES + LARGE] __attribute__((aligned(4096)));
static struct desc table[PAGES + 1] __attribute__((aligned(16)));
static uint8_t buffers[QUEUE_SIZE][4096] __attribute__((aligned(4096)));
static int frame_rest; /* buffers of a frame that are still to come */

/* To nobody, from a card of the guest's; a TCP segment that the host would divide, or nonsense. */
static void write_frame(uint32_t bytes)
{
	static const uint8_t segment[] = {
		/* the header of virtio-net: checksum needed, TSO4, headers 54, size 1448 */
		1, 1, 54, 0, 0xa8, 0x05, 34, 0, 16, 0, 0, 0,
		2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 0x08, 0x00,
		/* IPv4: 65522 bytes, TCP */
		0x45, 0, 0xff, 0xf2, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
		/* TCP: ACK */
		0x10, 0, 0x10, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
	};

	for (unsigned i = 0; i < sizeof(segment); i++)
		frame[i] = segment[i];
	if (bytes == SMALL) {
		for (int i = 0; i < HEADER_BYTES; i++)
			frame[i] = 0;
		frame[HEADER_BYTES + 12] = 0x88; /* local experiments */
		frame[HEADER_BYTES + 13] = 0xb5;
	}
}

/* As in Linux: the header and the first part together, then pages, in an indirect table. */
static void describe_frame(uint32_t bytes)
{
	struct desc *desc = card.ring[TRANSMIT]->desc;
	uint32_t first = bytes == SMALL ? SMALL : LARGE / PAGES;
	int count = 1;

	table[0] = (struct desc){ (uintptr_t)frame, HEADER_BYTES + first, 0, 0 };
	for (uint32_t at = first; at < bytes; at += LARGE / PAGES, count++) {
		table[count - 1].flags = DESC_NEXT;
		table[count - 1].next = count;
		table[count] = (struct desc){ (uintptr_t)frame + HEADER_BYTES + at, LARGE / PAGES, 0, 0 };
	}
	for (int slot = 0; slot < DEPTH; slot++) {
		desc[slot] = table[0];
		if (count > 1)
			desc[slot] = (struct desc){ (uintptr_t)table, count * sizeof(*table),
						    DESC_INDIRECT, 0 };
	}
}

static void send(uint32_t frames)
{
	struct ring *r = card.ring[TRANSMIT];
	uint16_t seen = r->used.idx;
	uint32_t offered = 0, done = 0;

	for (; offered < DEPTH; offered++)
		r->avail.ring[(r->avail.idx + offered) % QUEUE_SIZE] = offered;
	polled_no_interrupt(&card, TRANSMIT);
	polled_publish(&card, TRANSMIT, DEPTH);
	while (done < frames) {
		uint16_t again = 0, used = r->used.idx;

		for (; seen != used; seen++, done++) {
			if (offered < frames) {
				r->avail.ring[(uint16_t)(r->avail.idx + again++) % QUEUE_SIZE] =
					r->used.ring[seen % QUEUE_SIZE].id;
				offered++;
			}
		}
		polled_no_interrupt(&card, TRANSMIT);
		polled_publish(&card, TRANSMIT, again);
	}
}

static void measure_out(void *argument)
{
	struct measurement *m = argument;
	uint64_t began;

	describe_frame(m->bytes);
	send(500);
	began = read_tsc();
	send(m->frames);
	m->cycles = read_tsc() - began;
}

/* Take what has come and offer its buffers again; return how many frames are whole now. */
static uint32_t take(uint16_t *seen)
{
	struct ring *r = card.ring[RECEIVE];
	uint16_t used = r->used.idx, again = 0;
	uint32_t frames = 0;

	for (; *seen != used; ++*seen) {
		uint32_t id = r->used.ring[*seen % QUEUE_SIZE].id;

		if (!frame_rest)
			frame_rest = *(volatile uint16_t *)(buffers[id] + NUM_BUFFERS);
		frames += !--frame_rest;
		r->avail.ring[(uint16_t)(r->avail.idx + again++) % QUEUE_SIZE] = id;
	}
	polled_no_interrupt(&card, RECEIVE);
	polled_publish(&card, RECEIVE, again);
	return frames;
}

static void measure_in(void *argument)
{
	struct measurement *m = argument;
	struct ring *r = card.ring[RECEIVE];
	uint16_t seen = r->used.idx;
	uint32_t frames = 0, more;
	uint64_t began = read_tsc(), last;

	if (r->avail.idx == 0) {
		for (int i = 0; i < QUEUE_SIZE; i++) {
			r->desc[i] = (struct desc){ (uintptr_t)buffers[i], 4096, DESC_WRITE, 0 };
			r->avail.ring[i] = i;
		}
		polled_no_interrupt(&card, RECEIVE);
		polled_publish(&card, RECEIVE, QUEUE_SIZE);
	}
	while (frames < m->frames)
		frames += take(&seen);
	m->cycles = read_tsc() - began;
	/* Nothing may be left that would be taken for the next measurement's. */
	for (last = read_tsc(); read_tsc() - last < QUIET_CYCLES;) {
		more = take(&seen);
		if (more)
			last = read_tsc();
	}
}

static void report(struct measurement *m)
{
	put("frame ");
	put(m->direction);
	put(" ");
	put_hex(m->bytes, 8);
	put(" ");
	put_hex(m->frames, 8);
	put(" ");
	put_hex(m->cycles, 16);
	put("\n");
}

static const char *start(void)
{
	const char *missing;

	card.features = FEATURES;
	missing = start_device(&card);
	if (!missing && (card.features & FEATURES) != FEATURES)
		missing = "offloads";
	return missing;
}

void main(void)
{
	const char *missing = find_device(&card, TYPE_NET, 0, 2);

	prepare_user_mode();
	if (!missing)
		missing = start();
	if (missing) {
		put("no ");
		put(missing);
		put("\n");
		return;
	}
	wait_for_start();
	put_clock();
	for (int i = 0; i < 2; i++) {
		write_frame(out[i].bytes);
		call_as_user(measure_out, &out[i]);
		report(&out[i]);
	}
	for (int i = 0; i < 2; i++) {
		/* A reset takes the buffers back, so that the frames wait. */
		missing = start();
		put("fill ");
		put_hex(in[i].bytes, 8);
		put(" ");
		put_hex(in[i].frames, 8);
		put("\n");
		wait_for_start();
		call_as_user(measure_in, &in[i]);
		report(&in[i]);
	}
	put_clock();
}
