"""linux.seccomp compiled to a BPF program, by libseccomp over ctypes, and kept on disk by a hash of the profile."""

from __future__ import annotations

import ctypes
import os
from sys import byteorder

from harness.linux import syscalls
from harness.minirt.container.reader import Reader
from harness.minirt.container.record import Record
from harness.minirt.errors import SpecError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,  # a single thread is in step with itself
    "SECCOMP_FILTER_FLAG_LOG": syscalls.SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": syscalls.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": syscalls.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
}
ARCHITECTURES = (
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
)
"""Those that libseccomp 2.6 knows; an older one knows fewer."""
_NOTIFY = "SCMP_ACT_NOTIFY"
_LONGEST_ADDRESS = 107
"""bytes of a path in sockaddr_un, without the NUL"""
_REFUSING = frozenset((0x00000000, 0x80000000, 0x00030000, 0x00050000))
"""actions without their data, by which a filter keeps processes from a call"""
_EPERM = 1
_ENOSYS = 38
_EEXIST = 17
_ATTRIBUTE_OPTIMIZE = 8
_AS_A_TREE = 2
_X32 = 0x4000003E
"""libseccomp's name for x32, which is x86_64 to a filter, with higher numbers for its calls"""
_X32_BIT = 0x40000000
_LOAD_WORD, _IF_EQUAL, _IF_ABOVE, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
_FORMAT = "2"
"""Changes whenever the same profile is compiled to something else; part of the cache's key."""


class Listener(Record):
    """Who is asked about calls with SCMP_ACT_NOTIFY."""

    path: str
    """of its socket"""
    metadata: str = ""


class Compiled(Record):
    """A filter ready to load. `flags` for seccomp(2)."""

    code: bytes
    flags: int = 0
    listener: Listener | None = None


class Argument(Record):
    index: int
    operator: int
    value: int
    second: int


class Rule(Record):
    names: tuple[str, ...]
    action: int
    arguments: tuple[Argument, ...]


class Profile(Record):
    """linux.seccomp, checked."""

    default: int
    architectures: tuple[str, ...]
    rules: tuple[Rule, ...]
    flags: int
    listener: Listener | None = None


def parse_profile(content: dict[str, Any]) -> Profile:
    """Read linux.seccomp; raises `SpecError`."""
    top = Reader(content, "linux.seccomp")
    default = _action(top, "defaultAction", "defaultErrnoRet")
    if default == _ACTIONS[_NOTIFY]:
        raise top.fail(
            "defaultAction", f"cannot be {_NOTIFY}: the filter would ask about how its own descriptor is sent"
        )
    architectures = top.texts("architectures")
    for index, name in enumerate(architectures):
        if name not in ARCHITECTURES:
            raise top.fail(f"architectures[{index}]", f"{name!r} is none of {', '.join(ARCHITECTURES)}")
    rules = top.list("syscalls", _rule)
    notifies = any(rule.action == _ACTIONS[_NOTIFY] for rule in rules)
    return Profile(default, architectures, rules, _flags(top, notifies), _listener(top, notifies))


def _listener(top: Reader, notifies: bool) -> Listener | None:
    path, metadata = top.text("listenerPath"), top.text("listenerMetadata")
    if metadata and not path:
        raise top.fail("listenerMetadata", "means nothing without listenerPath")
    if not notifies:
        return None
    if not path:
        raise top.fail("listenerPath", f"is needed by {_NOTIFY}")
    if len(os.fsencode(path)) > _LONGEST_ADDRESS:
        raise top.fail("listenerPath", f"is longer than the {_LONGEST_ADDRESS} bytes of a socket's address")
    return Listener(path, metadata)


def _flags(top: Reader, notifies: bool) -> int:
    flags = syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER if notifies else 0
    for index, word in enumerate(top.texts("flags")):
        if word not in _FLAGS:
            raise top.fail(f"flags[{index}]", f"{word!r} is not supported")
        flags |= _FLAGS[word]
    # The kernel refuses this one where nobody listens, to whom it would mean nothing.
    return flags if notifies else flags & ~syscalls.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV


def _action(entry: Reader, key: str, errno_key: str) -> int:
    action, word = entry.choice(key, _ACTIONS), entry.text(key)
    number = entry.number(errno_key, least=0, most=0xFFFF)
    if word in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        return action | (_EPERM if number is None else number)
    if number is not None:
        raise entry.fail(errno_key, f"means nothing with {word}")
    return action


def _rule(entry: Reader) -> Rule:
    names = entry.texts("names")
    if not all(names) or not names:
        raise entry.fail("names", "is empty" if not names else "holds an empty name")

    def argument(item: Reader) -> Argument:
        return Argument(
            item.count("index", most=5),
            item.choice("op", _OPERATORS),
            item.count("value", most=(1 << 64) - 1),
            item.count("valueTwo", most=(1 << 64) - 1),
        )

    action = _action(entry, "action", "errnoRet")
    if action == _ACTIONS[_NOTIFY] and "write" in names:
        raise entry.fail("names", f"write cannot be {_NOTIFY}: by it the descriptor of the filter is told")
    return Rule(names, action, entry.list("args", argument))


_known: dict[str, Compiled] = {}
_MOST_KNOWN = 32


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def compile_profile(content: dict[str, Any], cache: str = "") -> Compiled:
    """The filter for linux.seccomp. `cache`: a folder in which compiled filters are kept (made where missing).

    A process that asks for the same one again gets the same object. Raises `SpecError`, and `Unsupported` where libseccomp
    is not installed.
    """
    path = ""
    if cache:
        from _blake2 import blake2b  # type: ignore[import-not-found,unused-ignore]

        text = f"{_FORMAT} {os.uname().release} {content!r}"
        key = blake2b(text.encode(), digest_size=16).hexdigest()
        path = f"{cache}/{key}.bpf"
        if path in _known:
            return _known[path]
        try:
            with open(path, "rb", buffering=0) as file:
                code = file.read()
            if code and len(code) % 8 == 0:
                top, notifies = Reader(content, "linux.seccomp"), _NOTIFY in text and parse_profile(content).listener
                return _know(path, Compiled(code, _flags(top, bool(notifies)), notifies or None))
        except OSError:
            code = b""
    profile = parse_profile(content)
    compiled = Compiled(_compile(profile), profile.flags, profile.listener)
    if path:
        _keep(path, compiled.code)
        _know(path, compiled)
    return compiled


def _know(path: str, compiled: Compiled) -> Compiled:
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[path] = compiled
    return compiled


def _keep(path: str, code: bytes) -> None:
    fresh = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with open(fresh, "wb", buffering=0) as file:
            file.write(code)
        os.rename(fresh, path)
    except OSError:
        # A cache that cannot be written costs time, nothing else.
        return


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


def _compile(profile: Profile) -> bytes:
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
                _instruction(_RETURN, _ACTIONS["SCMP_ACT_ERRNO"] | _ENOSYS),
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
