"""Which class of `RuntimeRefusal` an error of a runtime is: by its code, and where the code says nothing, by its words.

Runtimes answer most wrong moves with a code that means "unknown" and a sentence (containerd, over CRI), or with the same
exit status for everything (command lines). So the sentences are classified by tables: regular expressions, tried in
order, the first that is found anywhere in the text decides. What no row matches is `Refused`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.errors import CallTimeout, Conflict, NotFound, Refused, RuntimeRefusal, Unreachable

Words = tuple[tuple[str, type[RuntimeRefusal]], ...]

_TRANSPORT: Words = (
    (r"connection refused|no route to host|network is unreachable|no such host|i/o timeout", Unreachable),
    (r"error while dialing|failed to dial|cannot connect to the docker daemon", Unreachable),
)
_PROGRAM: Words = (
    # The container is there, the program to run in it is not: not to be taken for a missing container.
    (r"executable file (`[^`]*` )?not found in \$?path", Refused),
    (r"\b(exec|stat): .*no such file or directory", Refused),
)
_STATE: Words = (
    (r"\bcannot (exec|start|pause|resume|kill|delete|remove|stop)\b.* (paused|stopped|running|created)\b", Conflict),
    (r"\bis not in .* state\b", Conflict),
    (r"\bcontainer \S+ is (already )?(paused|stopped|running|restarting|created|dead)\b", Conflict),
    (r"(not|isn't|must be|already) (running|paused|created|started|stopped|frozen)\b", Conflict),
    (r"already (exists|in use)|is (reserved|in use)", Conflict),
    (r"no running task found", Conflict),  # containerd, of a container that is there without a task
    (r"process already finished|no such process", Conflict),  # a signal for what has ended, and is still there
)
_ABSENCE: Words = (
    (r"\bnot found\b|does not exist|no such (container|image|task|sandbox)|unknown container", NotFound),
)

CRI_WORDS: Words = (
    *_TRANSPORT,
    *_PROGRAM,
    (r"container is in \S+ state|is (already|still) in (starting|removing) state|is still running", Conflict),
    *_STATE,
    *_ABSENCE,
    (r"deadline exceeded|timed? ?out", CallTimeout),
)
"""containerd's CRI plugin: ``container is in CONTAINER_EXITED state``, under the code Unknown."""

COMMAND_WORDS: Words = (
    # crun goes by the files that it keeps of a container, and quotes their names one way or the other.
    (r"(error opening file [`'][^`']*/status[`']|cannot open directory [`'][^`']*[`']): no such file", NotFound),
    (r"cannot open [`'][^`']*/exec\.fifo[`']: no such file", Conflict),
    *_TRANSPORT,
    *_PROGRAM,
    *_STATE,
    *_ABSENCE,
)
"""Command lines: OCI runtimes, and ``ctr``, which hands on what they said."""

DOCKER_WORDS: Words = (
    *_TRANSPORT,
    *_PROGRAM,
    *_STATE,
    (r"container state improper", Conflict),
    (r"manifest unknown|name unknown|repository does not exist|image not known", NotFound),
    *_ABSENCE,
)
"""dockerd and podman, where the HTTP status says no more than that the server failed; podman's command line, too."""

STATUSES: dict[str, type[RuntimeRefusal]] = {
    "404": NotFound,
    "409": Conflict,
    "503": Unreachable,
    "504": CallTimeout,
}
"""HTTP statuses that say it by themselves."""

CODES: dict[str, type[RuntimeRefusal]] = {
    "NOT_FOUND": NotFound,
    "FAILED_PRECONDITION": Conflict,
    "ALREADY_EXISTS": Conflict,
    "UNAVAILABLE": Unreachable,
    "DEADLINE_EXCEEDED": CallTimeout,
}
"""gRPC status names that say it by themselves."""


def by_words(text: str, words: Iterable[tuple[str, type[RuntimeRefusal]]]) -> type[RuntimeRefusal]:
    """The class that `text` stands for; `Refused` where no row of `words` matches."""
    for pattern, kind in words:
        if re.search(pattern, text, re.IGNORECASE | re.DOTALL):
            return kind
    return Refused


def by_code(code: str, text: str, words: Iterable[tuple[str, type[RuntimeRefusal]]] = CRI_WORDS) -> RuntimeRefusal:
    """The refusal that a gRPC status name and its message are."""
    kind = CODES.get(code) or by_words(text, words)
    return kind(text, code)


def by_status(status: str, text: str, words: Words = DOCKER_WORDS) -> RuntimeRefusal:
    """The refusal that an HTTP status and the message that came with it are."""
    kind = STATUSES.get(status) or by_words(text, words)
    return kind(text, status)
