"""linux.seccomp: checked, compiled to a BPF program (`libseccomp`), which is kept on disk by a hash of the profile."""

from __future__ import annotations

import os

from harness.linux import syscalls
from harness.minirt.container.reader import Reader
from harness.minirt.container.record import Record

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
_EPERM = 1
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
    from harness.minirt.container.libseccomp import compile_rules

    profile = parse_profile(content)
    compiled = Compiled(compile_rules(profile), profile.flags, profile.listener)
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
