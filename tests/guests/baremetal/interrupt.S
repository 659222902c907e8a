/* SPDX-License-Identifier: BSD-3-Clause */
/* The one interrupt handler: count, and acknowledge at the local APIC. Linked into every guest. */

	.text
	.code64
	.globl interrupt_entry
interrupt_entry:
	pushq %rax
	incl interrupts(%rip)
	movl $0xfee000b0, %eax          /* end of interrupt */
	movl $0, (%rax)
	popq %rax
	iretq

	.globl load_idt
load_idt:                               /* rdi: the table's pointer */
	lidt (%rdi)
	ret

	.bss
	.balign 4
	.globl interrupts
interrupts:
	.skip 4
