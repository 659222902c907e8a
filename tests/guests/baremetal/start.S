/* SPDX-License-Identifier: BSD-3-Clause */
/* Entry of every bare-metal guest: long mode with memory below 4 GiB mapped onto itself, own
 * descriptor tables, a stack, then main(). Built twice: entered in long mode (Linux's 64-bit
 * protocol), or with a PVH note and entered in 32-bit protected mode, which QEMU starts as well. */

#ifdef PVH
#define XEN_ELFNOTE_PHYS32_ENTRY 18
	.section .note.Xen, "a", @note
	.long 4, 4, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz "Xen"
	.long start32

	.text
	.code32
start32:
	cli
	movl $page_tables + 0x1000 + 3, page_tables
	movl $page_tables + 0x2000 + 3, %eax
	movl $page_tables + 0x1000, %edi
1:	movl %eax, (%edi)               /* four directories */
	addl $0x1000, %eax
	addl $8, %edi
	cmpl $page_tables + 0x1020, %edi
	jne 1b
	movl $0x83, %eax                /* 2 MiB pages, present and writable */
	movl $page_tables + 0x2000, %edi
2:	movl %eax, (%edi)
	addl $0x200000, %eax
	addl $8, %edi
	cmpl $page_tables + 0x6000, %edi
	jne 2b
	movl $page_tables, %eax
	movl %eax, %cr3
	movl $0x20, %eax                /* CR4.PAE */
	movl %eax, %cr4
	movl $0xc0000080, %ecx          /* EFER.LME */
	xorl %edx, %edx
	movl $0x100, %eax
	wrmsr
	movl $0x80000011, %eax          /* CR0.PG, ET, PE */
	movl %eax, %cr0
	lgdt gdt_pointer
	ljmp $0x10, $start64
#endif

	.text
	.code64
	.globl start64
start64:
	cli
	cld
	lgdt gdt_pointer
	movq $stack_top, %rsp
	pushq $0x10
	pushq $reload
	lretq
reload:
	movl $0x18, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	xorl %edi, %edi
	call main
	/* main() of a guest that is done returns: reset by port 0xCF9, then by the keyboard
	 * controller, then by a triple fault. */
	movl $0xcf9, %edx
	movb $0x06, %al
	outb %al, %dx
	movb $0xfe, %al
	outb %al, $0x64
	.globl triple_fault
triple_fault:
	lidt empty_idt
	ud2

	.data
	.balign 16
gdt:
	.quad 0
	.quad 0
	.quad 0x00af9b000000ffff        /* 0x10: 64-bit code */
	.quad 0x00cf93000000ffff        /* 0x18: data */
gdt_pointer:
	.word . - gdt - 1
	.quad gdt
empty_idt:
	.word 0
	.quad 0

	.bss
	.balign 4096
page_tables:
	.skip 0x6000
	.skip 0x4000
stack_top:
