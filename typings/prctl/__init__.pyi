SECBIT_NOROOT: int
SECBIT_NOROOT_LOCKED: int
SECBIT_NO_SETUID_FIXUP: int
SECBIT_NO_SETUID_FIXUP_LOCKED: int
SECBIT_KEEP_CAPS_LOCKED: int

def set_securebits(bits: int, /) -> None: ...
def set_no_new_privs(value: int, /) -> None: ...
CAP_SETFCAP: int
