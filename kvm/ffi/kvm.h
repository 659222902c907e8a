/* SPDX-License-Identifier: BSD-3-Clause */
/* The functions of kvm.c. Those that can fail return a negative errno. build_kvm.py reads this file
 * too, so it may contain prototypes only, and no directives. */
int crosvm_ioctl(int fd, unsigned long request, void *arg);
int crosvm_ioctl_int(int fd, unsigned long request, unsigned long arg);
int crosvm_vcpu_run(int fd);
void *crosvm_map_run(int fd, size_t size);
void crosvm_chip_route(struct kvm_irq_routing *table, unsigned int at, unsigned int gsi,
                       unsigned int chip, unsigned int pin);
void crosvm_msi_route(struct kvm_irq_routing *table, unsigned int at, unsigned int gsi,
                      uint64_t address, unsigned int data);
int crosvm_install_kick_handler(int signo);
int crosvm_kick(int tid, int signo);
int crosvm_has_hardware_virtualization(void);
int crosvm_host_cpuid(unsigned int leaf, unsigned int registers[4]);
