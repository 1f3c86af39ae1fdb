"""criu as a worker of ours: one request over a socket, its questions on the way, one answer (https://criu.org/RPC, rpc.proto).

Only a worker can make the restored process our child, and only it parts from a terminal and hands a new one over. Its messages are protocol buffers,
of which two kinds of field are enough: whole numbers, and bytes with their length.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, CMSG_SPACE, SOCK_CLOEXEC, SOCK_SEQPACKET, socketpair

from harness.minirt.container.checkpoint import complaint, find_criu
from harness.minirt.errors import WrongState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable, Iterable

    Value = bool | int | str | bytes | Iterable[tuple[int, "Value"]]

DUMP, RESTORE, PRE_DUMP, NOTIFY = 1, 2, 4, 6
_TYPE, _OPTIONS, _NOTIFIED = 1, 2, 3
_ANSWER_SUCCESS, _ANSWER_RESTORE, _ANSWER_NOTIFY = 2, 4, 5
_SCRIPT, _PID = 1, 2
_FIRST_PID = 1
SOCKET_FD = 3
_LONGEST = 1 << 16


def encode(fields: Iterable[tuple[int, Value]]) -> bytes:
    """A message: numbers, texts and messages in it, by their numbers in rpc.proto."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            # A negative number is as long as can be, for it is one of 64 bits.
            parts += [_varint(number << 3), _varint(int(value) & (1 << 64) - 1)]
            continue
        body = value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else encode(value)
        parts += [_varint(number << 3 | 2), _varint(len(body)), body]
    return b"".join(parts)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(message: bytes) -> dict[int, int | bytes]:
    """Its fields by number, the last of each. Raises `ValueError`."""
    fields: dict[int, int | bytes] = {}
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == 0:
            fields[key >> 3], at = _read_varint(message, at)
        elif kind == 2:
            size, at = _read_varint(message, at)
            if at + size > len(message):
                raise ValueError("the message ends too early")
            fields[key >> 3] = message[at : at + size]
            at += size
        else:
            raise ValueError(f"field {key >> 3} is of a kind that criu does not use: {kind}")
    return fields


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("the message ends too early")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def ask(
    request: int,
    options: Callable[[int], list[tuple[int, Value]]],
    *,
    prepare: Callable[[], None],
    notified: Callable[[str, int, list[int]], None],
    descriptors: list[int],
    log: str,
) -> int:
    """Have criu do one thing: `DUMP`, `PRE_DUMP`, or `RESTORE`, with the pid of the first process, our child, as its result.

    `options`: the request's, for the pid of the worker; criu opens the folders of images and of work as it finds them among
    the descriptors of this process, by their numbers here. `prepare` is called in the worker before it becomes criu, which then
    has `descriptors` as 4, 5 ... . `notified` is told what happens: its name, the pid it is about, and descriptors that came
    with it, which it owns. Raises `WrongState` with criu's own words of `log`, and what `notified` raises.
    """
    program = find_criu()
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    error_reader, error_writer = os.pipe2(os.O_CLOEXEC)
    worker = os.fork()
    if worker == 0:
        _be_worker(program, prepare, theirs.fileno(), error_writer, descriptors)
    theirs.close()
    os.close(error_writer)
    try:
        with open(error_reader, "rb", buffering=0) as pipe:
            refused = pipe.read(_LONGEST)
        if refused:
            raise WrongState(f"criu cannot be started: {refused.decode(errors='replace')}")
        try:
            ours.send(encode([(_TYPE, request), (_OPTIONS, options(worker))]))
            answer = _converse(ours, notified)
        except (BrokenPipeError, ConnectionResetError):
            answer = {}
        if not answer.get(_ANSWER_SUCCESS):
            what = "restore" if request == RESTORE else "dump"
            raise WrongState(f"criu cannot {what} the container: {complaint(log, b'')} (see {log})")
        return int(_message(answer, _ANSWER_RESTORE).get(_FIRST_PID, 0))
    finally:
        ours.close()
        os.waitpid(worker, 0)


def _converse(end: socket, notified: Callable[[str, int, list[int]], None]) -> dict[int, int | bytes]:
    """Criu's last word; empty where it ended without one."""
    while True:
        message, rights, _, _ = end.recvmsg(_LONGEST, CMSG_SPACE(4 * 8))
        answer = decode(message)
        if answer.get(_TYPE) != NOTIFY:
            return answer
        notice = _message(answer, _ANSWER_NOTIFY)
        fds = [fd for _, _, data in rights for fd in memoryview(data).cast("i")]
        for fd in fds:
            os.set_inheritable(fd, False)
        script = notice.get(_SCRIPT, b"")
        notified(script.decode() if isinstance(script, bytes) else "", int(notice.get(_PID, 0)), fds)
        end.send(encode([(_TYPE, NOTIFY), (_NOTIFIED, True)]))


def _message(answer: dict[int, int | bytes], number: int) -> dict[int, int | bytes]:
    body = answer.get(number, b"")
    return decode(body) if isinstance(body, bytes) else {}


def _be_worker(program: str, prepare: Callable[[], None], end: int, errors: int, descriptors: list[int]) -> None:
    """Never returns."""
    try:
        prepare()
        # Out of the way of the numbers that they are to get.
        first_free = SOCKET_FD + 1 + len(descriptors)
        high = [_above(first_free, fd) for fd in (end, *descriptors)]
        moved = _above(first_free, errors)
        for number, fd in enumerate(high, SOCKET_FD):
            os.dup2(fd, number)
        errors = moved
        os.execve(program, ["criu", "swrk", str(SOCKET_FD)], dict(os.environ))
    except BaseException as error:
        about = f" ({os.fsdecode(error.filename)})" if isinstance(error, OSError) and error.filename else ""
        reason = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else str(error)
        os.write(errors, f"{reason}{about}".encode())
    finally:
        os._exit(1)


def _above(least: int, fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
