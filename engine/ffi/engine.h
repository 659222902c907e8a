/* SPDX-License-Identifier: BSD-3-Clause */
/* The C interface of the engine, which engine/src/abi.rs implements and documents: what each field
 * means, and what a caller must guarantee. build_engine.py reads this file too, so it may contain
 * no directives. */

struct crosvm_region {
    uint64_t gpa; uint64_t size_bytes; uint8_t *base; const uint8_t *blocks; uint64_t block_bytes;
};

struct crosvm_layout {
    uint64_t desc_table; uint64_t avail_ring; uint64_t used_ring;
    uint32_t size; bool event_idx; bool indirect;
};

struct crosvm_position {
    uint16_t next_avail; uint16_t avail_idx; uint16_t next_used; uint16_t signalled;
    bool must_signal;
};

struct crosvm_disk {
    int32_t fd; bool read_only; bool writethrough; bool cached; uint64_t capacity_sectors;
};

struct crosvm_limits { uint32_t chains; uint64_t bytes; uint64_t poll_ns; };

struct crosvm_turn {
    uint32_t outcome; uint32_t interrupts;
    uint64_t requests; uint64_t bytes_from_guest; uint64_t bytes_to_guest;
};

struct crosvm_tap {
    int32_t fd; bool merge; bool host_checksums; uint8_t host_gso[8];
    uint8_t guest_flags; uint8_t guest_gso[8]; uint64_t expected;
};

struct crosvm_net_turn {
    uint32_t outcome; uint32_t interrupts;
    uint64_t chains; uint64_t bytes_from_guest; uint64_t bytes_to_guest;
    uint64_t frames; uint64_t large; uint64_t frame_bytes; int32_t error;
};

struct crosvm_memory;
struct crosvm_block_queue;
struct crosvm_net_queue;
struct crosvm_pool;

const struct crosvm_memory *crosvm_engine_memory(const struct crosvm_region *regions, size_t count,
                                                 const uint64_t *bitmap, uint64_t bitmap_words);
void crosvm_engine_free_memory(const struct crosvm_memory *memory);
struct crosvm_block_queue *crosvm_engine_block_queue(const struct crosvm_memory *memory,
                                                     const struct crosvm_layout *layout,
                                                     const struct crosvm_position *position,
                                                     int32_t kick_fd, int32_t call_fd);
void crosvm_engine_free_block_queue(struct crosvm_block_queue *queue);
struct crosvm_pool *crosvm_engine_pool(uint32_t threads);
void crosvm_engine_free_pool(struct crosvm_pool *pool);
void crosvm_engine_count_in(struct crosvm_block_queue *queue, const uint64_t *cells);
void crosvm_engine_block_turn(struct crosvm_block_queue *queue, struct crosvm_block_queue **others,
                              size_t count, const struct crosvm_disk *disk,
                              const struct crosvm_limits *limits, const struct crosvm_pool *pool,
                              struct crosvm_turn *turn);
void crosvm_engine_take(struct crosvm_block_queue *queue, struct crosvm_position *position);
void crosvm_engine_give(struct crosvm_block_queue *queue, const struct crosvm_position *position);
struct crosvm_net_queue *crosvm_engine_net_queue(const struct crosvm_memory *memory,
                                                 const struct crosvm_layout *layout,
                                                 const struct crosvm_position *position,
                                                 int32_t call_fd, bool receives);
void crosvm_engine_free_net_queue(struct crosvm_net_queue *queue);
void crosvm_engine_net_turn(struct crosvm_net_queue *queue, struct crosvm_tap *tap,
                            const struct crosvm_limits *limits, struct crosvm_net_turn *turn);
const uint8_t *crosvm_engine_net_frame(const struct crosvm_net_queue *queue);
void crosvm_engine_net_take(const struct crosvm_net_queue *queue,
                            struct crosvm_position *position);
void crosvm_engine_net_give(struct crosvm_net_queue *queue,
                            const struct crosvm_position *position);
void crosvm_engine_exit_on_panic(void);
void crosvm_engine_report_panics(int32_t fd, const uint8_t *head, size_t len);
