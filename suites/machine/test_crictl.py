"""crictl of the machine under trial: whether it talks to the engine that is there."""

from __future__ import annotations

from typing import Any

import pytest
from testinfra.host import Host

from harness.machine.crictl import CONFIG, parse_config, parse_endpoint


@pytest.fixture
def settings(host: Host) -> dict[str, Any]:
    """The machine's own configuration of crictl."""
    if host.run("command -v crictl").rc:
        pytest.skip("crictl is not installed: seatrial setup crictl")
    file = host.file(str(CONFIG))
    if not file.exists:
        pytest.skip(f"there is no {CONFIG}: seatrial setup crictl --endpoint unix:///...")
    return parse_config(file.content_string)


def test_endpoints_are_addresses_of_one_engine(settings: dict[str, Any]) -> None:
    """It asks two services, usually of one engine: a runtime without its images is the classic misconfiguration."""
    runtime = parse_endpoint(str(settings.get("runtime-endpoint", "")))
    assert parse_endpoint(str(settings.get("image-endpoint") or runtime)) == runtime


def test_engine_answers_there(host: Host, settings: dict[str, Any]) -> None:
    socket = parse_endpoint(str(settings.get("runtime-endpoint", ""))).socket
    if not host.file(str(socket)).exists:
        pytest.skip(f"no engine of the machine's own listens at {socket}: a trial starts private ones")
    answer = host.run("crictl info")
    assert answer.rc == 0, answer.stderr
