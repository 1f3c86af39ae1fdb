"""A seccomp profile compiled to a BPF program, by libseccomp over ctypes: loaded only where no such program is kept yet."""

from __future__ import annotations

import ctypes
import os
from sys import byteorder

from harness.minirt.errors import SpecError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.minirt.container.seccomp import Profile, Rule

_REFUSING = frozenset((0x00000000, 0x80000000, 0x00030000, 0x00050000))
"""actions without their data, by which a filter keeps processes from a call"""
_ENOSYS = 38
_EEXIST = 17
_ATTRIBUTE_OPTIMIZE = 8
_AS_A_TREE = 2
_X32 = 0x4000003E
"""libseccomp's name for x32, which is x86_64 to a filter, with higher numbers for its calls"""
_X32_BIT = 0x40000000
_LOAD_WORD, _IF_EQUAL, _IF_ABOVE, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
_ACT_ERRNO = 0x00050000


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise Unsupported(f"linux.seccomp needs libseccomp.so.2 (package libseccomp2): {error}") from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    library.seccomp_arch_native.restype = ctypes.c_uint32
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    ]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library


def compile_rules(profile: Profile) -> bytes:
    """The BPF program of a profile. Raises `SpecError`, and `Unsupported` where libseccomp is not installed."""
    library = _library()
    context = library.seccomp_init(profile.default)
    if not context:
        raise SpecError("linux.seccomp.defaultAction", "is not supported by libseccomp")
    architectures = [library.seccomp_arch_native()]
    try:
        # The kernel tries a new filter on every call there is; a tree answers in ten steps rather than in hundreds. An
        # older library does not know this, and does without.
        library.seccomp_attr_set(context, _ATTRIBUTE_OPTIMIZE, _AS_A_TREE)
        for index, name in enumerate(profile.architectures):
            short = name.removeprefix("SCMP_ARCH_").lower().encode()
            token = library.seccomp_arch_resolve_name(short)
            if not token:
                raise SpecError(f"linux.seccomp.architectures[{index}]", f"{name!r} is not known to this libseccomp")
            result = library.seccomp_arch_add(context, token)
            if result not in (0, -_EEXIST):
                raise SpecError(f"linux.seccomp.architectures[{index}]", os.strerror(-result).lower())
            if token not in (*architectures, _X32):
                architectures.append(token)
        for index, rule in enumerate(profile.rules):
            # A rule that says what happens anyway is refused by the library.
            if rule.action != profile.default:
                _add(library, context, rule, f"linux.seccomp.syscalls[{index}]")
        code = _export(library, context)
    finally:
        library.seccomp_release(context)
    return _unknown_calls(library, profile, architectures) + code


def _unknown_calls(library: ctypes.CDLL, profile: Profile, architectures: list[int]) -> bytes:
    """What goes before a filter that allows only what it knows: ENOSYS for calls that are newer than all that it names.

    C libraries try a new call and fall back to an older one where there is none; an EPERM would be taken for an answer.
    """
    if profile.default & 0xFFFF0000 not in _REFUSING or profile.default & 0xFFFF == _ENOSYS:
        return b""
    code = b""
    for token in architectures:
        numbers = [
            library.seccomp_syscall_resolve_name_arch(token, name.encode())
            for rule in profile.rules
            for name in rule.names
        ]
        last = max(numbers, default=-1)
        if last < 0:
            continue
        code += b"".join(
            (
                _instruction(_LOAD_WORD, 4),
                _instruction(_IF_EQUAL, token, 0, 4),
                _instruction(_LOAD_WORD, 0),
                _instruction(_IF_AT_LEAST, _X32_BIT, 2, 0),
                _instruction(_IF_ABOVE, last, 0, 1),
                _instruction(_RETURN, _ACT_ERRNO | _ENOSYS),
            )
        )
    return code


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """A ``struct sock_filter``."""
    return code.to_bytes(2, byteorder) + bytes((if_true, if_false)) + value.to_bytes(4, byteorder)


def _add(library: ctypes.CDLL, context: int, rule: Rule, path: str) -> None:
    indices = [argument.index for argument in rule.arguments]
    comparisons = [
        _Comparison(item.index, item.operator, item.value, item.second if item.operator == 7 else 0)
        for item in rule.arguments
    ]
    # Several conditions on one argument mean "any of them", as engines have always understood it.
    groups = [comparisons] if len(set(indices)) == len(indices) else [[item] for item in comparisons]
    for name in rule.names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:  # unknown to this library, hence to the profile's target as well
            continue
        for group in groups:
            array = (_Comparison * len(group))(*group)
            result = library.seccomp_rule_add_array(context, rule.action, number, len(group), array)
            if result not in (0, -_EEXIST):
                raise SpecError(path, f"{name}: {os.strerror(-result).lower()}")


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        result = library.seccomp_export_bpf(context, fd)
        if result:
            raise Unsupported(f"linux.seccomp: libseccomp cannot export the filter: {os.strerror(-result).lower()}")
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
