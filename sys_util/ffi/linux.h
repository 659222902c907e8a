/* SPDX-License-Identifier: BSD-3-Clause */
/* The functions of linux.c. Those that can fail return a negative errno. build_linux.py reads this
 * file too, so it may contain prototypes only, and no directives. */
void crosvm_full_barrier(void);
int crosvm_clone(unsigned long flags);
int crosvm_clone_into_cgroup(unsigned long flags, int cgroup_fd);
int crosvm_mount(const char *source, const char *target, const char *type,
                 unsigned long flags, const char *data);
int crosvm_umount2(const char *target, int flags);
int crosvm_pivot_root(const char *new_root, const char *put_old);
int crosvm_close_range(unsigned int first, unsigned int last);
int crosvm_close_on_exec(unsigned int first);
void crosvm_forget_environment(const char *kept);
int crosvm_fallocate(int fd, int mode, long long offset, long long length);
int crosvm_prctl(int option, unsigned long arg2, unsigned long arg3,
                 unsigned long arg4, unsigned long arg5);
int crosvm_set_capabilities(unsigned long long mask, unsigned long long inheritable);
int crosvm_capabilities(unsigned long long *mask);
int crosvm_load_filter(const void *program, unsigned short length, int all_threads);
int crosvm_load_recording_filter(const void *program, unsigned short length,
                                 int recorder, const void *name, unsigned int name_bytes,
                                 unsigned long mark, int all_threads);
int crosvm_report_denied_calls(int fd, const void *head, unsigned int head_bytes,
                               int status, int names_thread);
int crosvm_landlock_abi(void);
int crosvm_landlock_create(unsigned long long fs, unsigned long long net,
                           unsigned long long scoped, unsigned int words);
int crosvm_landlock_allow(int ruleset, int directory, unsigned long long fs);
int crosvm_landlock_restrict(int ruleset);
int crosvm_pidfd_send_signal(int pidfd, int signal);
int crosvm_map_shared(int fd, unsigned long long offset, size_t length, size_t alignment,
                      void **where);
int crosvm_unmap(void *where, size_t length);
int crosvm_madvise(void *where, size_t length, int advice);
int crosvm_bind_memory(void *where, size_t length, unsigned int node);
