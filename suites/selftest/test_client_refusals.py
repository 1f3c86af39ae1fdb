"""Errors of real runtimes, word for word, and the class that each of them is."""

from __future__ import annotations

import pytest

from harness.client.refusals import COMMAND_WORDS, DOCKER_WORDS, by_code, by_status, by_words
from harness.errors import CallTimeout, Conflict, NotFound, Refused, RuntimeRefusal, Unreachable

ID = "27ab825b8b47fa3c0791f00f5959b1c97452001841fe7acf1dbc833d3f7e494f"
RUNC = [
    ("container does not exist", NotFound),
    ("exec failed: container does not exist", NotFound),
    ("container not paused", Conflict),
    ("container not running", Conflict),
    ("cannot start an already running container", Conflict),
    ("cannot start a container in the paused state", Conflict),
    ("cannot start a container that has stopped", Conflict),
    ("cannot delete container m1 that is not stopped: running", Conflict),
    ("exec failed: cannot exec in a paused container (use --ignore-paused to override)", Conflict),
    ("exec failed: cannot exec in a stopped container", Conflict),
    ("runc create failed: container with given ID already exists", Conflict),
    (
        'exec failed: unable to start container process: exec: "/no/such": stat /no/such: no such file or directory',
        Refused,
    ),
    ('exec failed: unable to start container process: exec: "nosuch": executable file not found in $PATH', Refused),
    ('exec failed: unable to start container process: exec: "/etc/passwd": permission denied', Refused),
]
CRUN = [
    ("error opening file `/run/oci/m1/status`: No such file or directory", NotFound),
    ("cannot open directory '/run/oci/m1': No such file or directory", NotFound),
    ("cannot open directory `/run/oci/m1`: No such file or directory", NotFound),
    ("cannot open `/run/oci/m1/exec.fifo`: No such file or directory", Conflict),
    ("the container `m1` is not in `created` or `stopped` state", Conflict),
    ("the container `m1` is not running", Conflict),
    ("the container `m1` is paused", Conflict),
    ("container `m1` already exists", Conflict),
    ("kill container: No such process", Conflict),
    ("executable file `/no/such` not found in $PATH: No such file or directory", Refused),
]
CTR = [
    ('ctr: container "m1" in namespace "k8s.io": not found', NotFound),
    ('ctr: image "127.0.0.1:5000/seatrial/nowhere:1": not found', NotFound),
    (f"ctr: no running task found: task {ID} not found: not found", Conflict),
    ("ctr: task m1: already exists", Conflict),
    ("ctr: process already finished: not found", Conflict),
    ("ctr: cannot pause a stopped container: unknown", Conflict),
    ("ctr: cannot pause a paused container: unknown", Conflict),
    ("ctr: cannot resume a running process: unknown", Conflict),
    ("ctr: cannot exec in a stopped state: unknown", Conflict),
    ("ctr: cannot delete a non stopped container: {running 0 0001-01-01 00:00:00 +0000 UTC}", Conflict),
    (
        'ctr: failed to resolve reference "127.0.0.1:9/x:1": failed to do request: Head '
        '"http://127.0.0.1:9/v2/x/manifests/1": dial tcp 127.0.0.1:9: connect: connection refused',
        Unreachable,
    ),
]
CRI = [
    ("NOT_FOUND", f'an error occurred when try to find container "{ID}": not found', NotFound),
    ("UNKNOWN", "failed to exec in container: container is in CONTAINER_CREATED state", Conflict),
    (
        "UNKNOWN",
        f'failed to exec in container: failed to create exec "{ID}": cannot exec in a paused state: unknown',
        Conflict,
    ),
    ("UNKNOWN", f'failed to reserve sandbox name "a_b_c_0": name "a_b_c_0" is reserved for "{ID}"', Conflict),
    (
        "UNKNOWN",
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: "
        'unable to start container process: exec: "/no/such": stat /no/such: no such file or directory: unknown',
        Refused,
    ),
    (
        "UNKNOWN",
        'failed to pull and unpack image "127.0.0.1:9/x:1": failed to resolve reference "127.0.0.1:9/x:1": failed to do '
        'request: Head "http://127.0.0.1:9/v2/x/manifests/1": dial tcp 127.0.0.1:9: connect: connection refused',
        Unreachable,
    ),
    (
        "DEADLINE_EXCEEDED",
        "failed to exec in container: timeout 1s exceeded: context deadline exceeded",
        CallTimeout,
    ),
    ("UNAVAILABLE", "failed to connect to all addresses", Unreachable),
    ("FAILED_PRECONDITION", "whatever it says: not found", Conflict),
    ("INTERNAL", "something fell over", Refused),
]
DOCKER = [
    ("404", "No such container: m1", NotFound),
    ("409", f"Container {ID} is not running", Conflict),
    ("500", f"Container {ID} is not paused", Conflict),
    ("500", "manifest unknown", NotFound),
    ("500", 'Get "http://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused', Unreachable),
    (
        "400",
        "failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: "
        'exec: "/no/such": stat /no/such: no such file or directory: unknown',
        Refused,
    ),
]
PODMAN = [
    ('Error: no container with name or ID "m1" found: no such container', NotFound),
    ("Error: inspecting object: no such container m1", NotFound),
    ("Error: 127.0.0.1:5000/seatrial/never:1: image not known", NotFound),
    ("Error: can only create exec sessions on running containers: container state improper", Conflict),
    (f'Error: "{ID}" is not paused, can\'t unpause: container state improper', Conflict),
    (
        f"Error: cannot remove container {ID} as it is running - running or paused containers cannot be removed without force: "
        "container state improper",
        Conflict,
    ),
    (
        f'Error: creating container storage: the container name "m1" is already in use by {ID}. You have to remove that '
        "container to be able to reuse that name: that name is already in use",
        Conflict,
    ),
    (
        "Error: crun: executable file `/no/such` not found in $PATH: No such file or directory: OCI runtime attempted to "
        "invoke a command that was not found",
        Refused,
    ),
    (
        "Error: initializing source docker://127.0.0.1:5000/seatrial/nowhere:1: reading manifest 1 in "
        "127.0.0.1:5000/seatrial/nowhere: name unknown: repository name not known to registry",
        NotFound,
    ),
    (
        "Error: initializing source docker://127.0.0.1:9/x:1: pinging container registry 127.0.0.1:9: Get "
        '"https://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused',
        Unreachable,
    ),
]


@pytest.mark.parametrize(("text", "kind"), PODMAN, ids=lambda value: str(value)[:40])
def test_words_of_podman(text: str, kind: type[RuntimeRefusal]) -> None:
    assert by_words(text, DOCKER_WORDS) is kind


@pytest.mark.parametrize(("text", "kind"), [*RUNC, *CRUN, *CTR], ids=lambda value: str(value)[:40])
def test_words_of_command_lines(text: str, kind: type[RuntimeRefusal]) -> None:
    assert by_words(text, COMMAND_WORDS) is kind


@pytest.mark.parametrize(("code", "text", "kind"), CRI, ids=lambda value: str(value)[:40])
def test_grpc_status_first_then_words(code: str, text: str, kind: type[RuntimeRefusal]) -> None:
    refusal = by_code(code, text)
    assert type(refusal) is kind
    assert refusal.code == code
    assert str(refusal) == f"{text} [{code}]"


@pytest.mark.parametrize(("status", "text", "kind"), DOCKER, ids=lambda value: str(value)[:40])
def test_http_status_first_then_words(status: str, text: str, kind: type[RuntimeRefusal]) -> None:
    refusal = by_status(status, text)
    assert (type(refusal), refusal.code, refusal.message) == (kind, status, text)


def test_words_are_read_across_lines() -> None:
    assert by_words('exec: "x":\nstat x: no such\nfile or directory', COMMAND_WORDS) is Refused
    assert by_words("first line\ncontainer does not exist\n", COMMAND_WORDS) is NotFound
