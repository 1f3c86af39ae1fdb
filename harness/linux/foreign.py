"""The part of `ctypes` that system calls need, under the same names: loading the whole would cost a command of minirt's 2 ms
and 700 KB, a tenth of what it needs in all.

Types are those of 64-bit Linux. Arguments without a type go as C ints, as in `ctypes`; results are C ints.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ctypes import (
        CDLL,
        Array,
        PyDLL,
        Structure,
        addressof,
        byref,
        c_char_p,
        c_int,
        c_int32,
        c_long,
        c_size_t,
        c_uint,
        c_uint32,
        c_uint64,
        c_ulong,
        c_ushort,
        c_void_p,
        create_string_buffer,
        get_errno,
        sizeof,
    )
else:
    from _ctypes import Array, CFuncPtr, Structure, _SimpleCData, addressof, byref, dlopen, get_errno, sizeof

    _CDECL, _HOLDS_THE_LOCK, _USE_ERRNO = 1, 4, 8
    _NOW = 2
    """RTLD_NOW, RTLD_LOCAL"""

    class c_char(_SimpleCData):
        _type_ = "c"

    class c_int(_SimpleCData):
        _type_ = "i"

    class c_uint(_SimpleCData):
        _type_ = "I"

    class c_long(_SimpleCData):
        _type_ = "l"

    class c_ulong(_SimpleCData):
        _type_ = "L"

    class c_ushort(_SimpleCData):
        _type_ = "H"

    class c_char_p(_SimpleCData):
        _type_ = "z"

    class c_void_p(_SimpleCData):
        _type_ = "P"

    c_int32, c_uint32, c_uint64, c_size_t = c_int, c_uint, c_ulong, c_ulong

    class _Library:
        """The functions of the C library, each made when it is first asked for."""

        _flags = _CDECL

        def __init__(self, name: None, use_errno: bool = False) -> None:
            self._handle = dlopen(name, _NOW)
            kind = self._flags | (_USE_ERRNO if use_errno else 0)
            self._kind = type("Function", (CFuncPtr,), {"_flags_": kind, "_restype_": c_int})

        def __getattr__(self, name: str) -> CFuncPtr:
            function = self._kind((name, self))
            setattr(self, name, function)
            return function

    class CDLL(_Library):
        """Lets other threads run meanwhile."""

    class PyDLL(_Library):
        """Holds the interpreter's lock meanwhile."""

        _flags = _CDECL | _HOLDS_THE_LOCK

    def create_string_buffer(init: bytes | int, size: int = 0) -> Array:
        """`init` bytes and a NUL, or that number of NULs; with a `size`, just so many bytes."""
        buffer = (c_char * (size or (init if isinstance(init, int) else len(init) + 1)))()
        if isinstance(init, bytes):
            buffer.value = init
        return buffer


__all__ = [
    "CDLL",
    "Array",
    "PyDLL",
    "Structure",
    "addressof",
    "byref",
    "c_char_p",
    "c_int",
    "c_int32",
    "c_long",
    "c_size_t",
    "c_uint",
    "c_uint32",
    "c_uint64",
    "c_ulong",
    "c_ushort",
    "c_void_p",
    "create_string_buffer",
    "get_errno",
    "sizeof",
]
