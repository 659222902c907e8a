from cffi import FFI

ffi: FFI

class _Lib:
    def crosvm_full_barrier(self) -> None: ...
    def crosvm_clone(self, flags: int) -> int: ...
    def crosvm_clone_into_cgroup(self, flags: int, cgroup_fd: int) -> int: ...
    def crosvm_mount(
        self, source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes
    ) -> int: ...
    def crosvm_umount2(self, target: bytes, flags: int) -> int: ...
    def crosvm_pivot_root(self, new_root: bytes, put_old: bytes) -> int: ...
    def crosvm_close_range(self, first: int, last: int) -> int: ...
    def crosvm_close_on_exec(self, first: int) -> int: ...
    def crosvm_forget_environment(self, kept: bytes) -> None: ...
    def crosvm_fallocate(self, fd: int, mode: int, offset: int, length: int) -> int: ...
    def crosvm_prctl(self, option: int, arg2: int, arg3: int, arg4: int, arg5: int) -> int: ...
    def crosvm_set_capabilities(self, mask: int, inheritable: int) -> int: ...
    def crosvm_capabilities(self, mask: FFI.CData) -> int: ...
    def crosvm_load_filter(self, program: FFI.CData, length: int, all_threads: bool) -> int: ...
    def crosvm_load_recording_filter(
        self,
        program: FFI.CData,
        length: int,
        recorder: int,
        name: bytes,
        name_bytes: int,
        mark: int,
        all_threads: bool,
    ) -> int: ...
    def crosvm_report_denied_calls(
        self, fd: int, head: bytes, head_bytes: int, status: int, names_thread: bool
    ) -> int: ...
    def crosvm_landlock_abi(self) -> int: ...
    def crosvm_landlock_create(self, fs: int, net: int, scoped: int, words: int) -> int: ...
    def crosvm_landlock_allow(self, ruleset: int, directory: int, fs: int) -> int: ...
    def crosvm_landlock_restrict(self, ruleset: int) -> int: ...
    def crosvm_pidfd_send_signal(self, pidfd: int, signal: int) -> int: ...
    def crosvm_map_shared(
        self, fd: int, offset: int, length: int, alignment: int, where: FFI.CData
    ) -> int: ...
    def crosvm_unmap(self, where: FFI.CData, length: int) -> int: ...
    def crosvm_madvise(self, where: FFI.CData, length: int, advice: int) -> int: ...
    CAP_DAC_OVERRIDE: int
    CAP_KILL: int
    CAP_NET_ADMIN: int
    CAP_SETGID: int
    CAP_SETPCAP: int
    CAP_SETUID: int
    CAP_SYS_ADMIN: int
    CLONE_NEWCGROUP: int
    CLONE_NEWIPC: int
    CLONE_NEWNET: int
    CLONE_NEWNS: int
    CLONE_NEWPID: int
    CLONE_NEWUSER: int
    CLONE_NEWUTS: int
    PR_CAP_AMBIENT: int
    PR_CAP_AMBIENT_RAISE: int
    CLONE_PARENT: int
    MNT_DETACH: int
    MS_BIND: int
    MS_NODEV: int
    MS_NOEXEC: int
    MS_NOSUID: int
    MS_PRIVATE: int
    MS_RDONLY: int
    MS_REC: int
    MS_REMOUNT: int
    PR_CAPBSET_DROP: int
    PR_SET_DUMPABLE: int
    PR_SET_NAME: int
    PR_SET_NO_NEW_PRIVS: int
    PR_SET_PDEATHSIG: int
    FALLOC_FL_KEEP_SIZE: int
    FALLOC_FL_PUNCH_HOLE: int
    FALLOC_FL_ZERO_RANGE: int
    F_OFD_GETLK: int
    F_OFD_SETLK: int

lib: _Lib
