/* SPDX-License-Identifier: BSD-3-Clause */
/* Where a second processor starts: copied to AP_GPA, entered in real mode by the start-up IPI. */

	.equ AP_GPA, 0x80000

	.text
	.code16
	.globl ap_start, ap_end
ap_start:
	cli
	movw %cs, %ax
	movw %ax, %ds
	lgdtl ap_gdt_pointer - ap_start
	movl $0x11, %eax                /* CR0.ET, PE */
	movl %eax, %cr0
	ljmpl $0x8, $AP_GPA + ap_protected - ap_start
	.code32
ap_protected:
	movl $0x18, %eax
	movl %eax, %ds
	movl %eax, %ss
	movl ap_cr3, %eax
	movl %eax, %cr3
	movl $0x20, %eax                /* CR4.PAE */
	movl %eax, %cr4
	movl $0xc0000080, %ecx          /* EFER.LME */
	xorl %edx, %edx
	movl $0x100, %eax
	wrmsr
	movl $0x80000011, %eax          /* CR0.PG, ET, PE */
	movl %eax, %cr0
	ljmpl $0x10, $ap_long
	.balign 8
ap_gdt:
	.quad 0
	.quad 0x00cf9b000000ffff        /* 0x08: 32-bit code */
	.quad 0x00af9b000000ffff        /* 0x10: 64-bit code */
	.quad 0x00cf93000000ffff        /* 0x18: data */
ap_gdt_pointer:
	.word . - ap_gdt - 1
	.long AP_GPA + ap_gdt - ap_start
ap_end:

	.code64
ap_long:
	movl $0x18, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movq $ap_stack_top, %rsp
	call ap_main
1:	cli
	hlt
	jmp 1b

	.bss
	.balign 16
	.globl ap_cr3
ap_cr3:
	.skip 16
	.skip 0x1000
ap_stack_top:
