/* SPDX-License-Identifier: BSD-3-Clause */
/* Run a function at privilege level 3. A KVM without hardware virtualization emulates supervisor
 * code instruction by instruction, and lets user code run at the speed of the processor. */

#ifndef USER_MODE_H
#define USER_MODE_H

#include "interrupt.h"

#define VECTOR_UD 6
#define PRESENT_WRITABLE_USER 0x7
#define LARGE_PAGE 0x80
#define DIRECTORIES 4

static uint64_t user_tables[2][512] __attribute__((aligned(4096)));
static uint64_t user_directories[DIRECTORIES * 512] __attribute__((aligned(4096)));
static uint8_t user_stack[16384] __attribute__((aligned(16), used));
static uint8_t trap_stack[4096] __attribute__((aligned(16)));
static uint64_t task_state[13]; /* only the stack for traps is used: bytes 4 to 11 */
static uint64_t user_gdt[8] = {
	[2] = 0x00af9b000000ffff, /* 0x10: code */
	[3] = 0x00cf93000000ffff, /* 0x18: data */
	[4] = 0x00cff3000000ffff, /* 0x20: data of level 3 */
	[5] = 0x00affb000000ffff, /* 0x28: code of level 3 */
};

/* rdi: the function, rsi: its argument. Its return leads to ud2, and ud2 back here. */
void call_as_user(void (*function)(void *), void *argument);
void leave_user(void);
uint64_t supervisor_stack;

__asm__("	.globl call_as_user, leave_user\n"
	"call_as_user:\n"
	"	pushq %rbx\n"
	"	pushq %rbp\n"
	"	pushq %r12\n"
	"	pushq %r13\n"
	"	pushq %r14\n"
	"	pushq %r15\n"
	"	movq %rsp, supervisor_stack\n"
	"	pushq $0x23\n"
	"	pushq $user_stack + 16384 - 64\n"
	"	pushq $2\n"
	"	pushq $0x2b\n"
	"	pushq $1f\n"
	"	movq %rdi, %rax\n"
	"	movq %rsi, %rdi\n"
	"	iretq\n"
	"1:	call *%rax\n"
	"	ud2\n"
	"leave_user:\n"
	"	movq supervisor_stack, %rsp\n"
	"	popq %r15\n"
	"	popq %r14\n"
	"	popq %r13\n"
	"	popq %r12\n"
	"	popq %rbp\n"
	"	popq %rbx\n"
	"	ret\n");

/* Let user code reach all memory below 4 GiB, and come back by an invalid instruction. */
static void prepare_user_mode(void)
{
	struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) gdt = { sizeof(user_gdt) - 1, (uintptr_t)user_gdt };
	uint64_t state = (uintptr_t)task_state, stack = (uintptr_t)trap_stack + sizeof(trap_stack);

	user_tables[0][0] = (uintptr_t)user_tables[1] | PRESENT_WRITABLE_USER;
	for (int i = 0; i < DIRECTORIES; i++)
		user_tables[1][i] = (uintptr_t)&user_directories[512 * i] | PRESENT_WRITABLE_USER;
	for (uint64_t i = 0; i < DIRECTORIES * 512; i++)
		user_directories[i] = i << 21 | LARGE_PAGE | PRESENT_WRITABLE_USER;
	__asm__ volatile("mov %0, %%cr3" : : "r"(user_tables) : "memory");
	task_state[0] = stack << 32;
	task_state[1] = stack >> 32;
	user_gdt[6] = (sizeof(task_state) - 1) | (state & 0xffffff) << 16 | 0x89ULL << 40 |
		      (state >> 24 & 0xff) << 56;
	user_gdt[7] = state >> 32;
	__asm__ volatile("lgdt %0\n\tltr %w1" : : "m"(gdt), "r"(0x30) : "memory");
	enable_interrupt(VECTOR_UD);
	set_handler(VECTOR_UD, leave_user);
}

#endif
