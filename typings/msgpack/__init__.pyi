from collections.abc import Callable

from . import exceptions as exceptions

def packb(
    o: object,
    *,
    default: Callable[..., object] = ...,
    use_bin_type: bool = ...,
    unicode_errors: str = ...,
) -> bytes: ...
def unpackb(
    packed: bytes | bytearray | memoryview,
    *,
    use_list: bool = ...,
    raw: bool = ...,
    strict_map_key: bool = ...,
    max_buffer_size: int = ...,
    max_str_len: int = ...,
    max_bin_len: int = ...,
    max_array_len: int = ...,
    max_map_len: int = ...,
    max_ext_len: int = ...,
    ext_hook: Callable[[int, bytes], object] = ...,
) -> object: ...
