"""GetContainerEvents (cri-api v1, ``ContainerEventResponse``)."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from harness.errors import RuntimeRefusal
from harness.model.area import Area
from harness.session.breach import answers, swaps
from harness.session.cri import EXITED, READY, RUNNING, CriTrial

pytestmark = pytest.mark.operation(Area.EVENTS)

CREATED_EVENT, STARTED_EVENT, STOPPED_EVENT, DELETED_EVENT = 0, 1, 2, 3


class Heard:
    """The events that have come since a client began to listen."""

    def __init__(self, cri: CriTrial) -> None:
        self._cri, self._came, self.events = cri, queue.SimpleQueue[Any](), list[Any]()

    def listen(self, stream: Iterator[Any]) -> None:
        with contextlib.suppress(RuntimeRefusal):
            for event in stream:
                self._came.put(event)

    def of(self, id: str) -> list[Any]:
        while not self._came.empty():
            self.events.append(self._came.get())
        return [event for event in self.events if event.container_id == id]

    def kinds(self, id: str) -> list[int]:
        return [event.container_event_type for event in self.of(id)]

    def wait(self, id: str, kind: int) -> Any:
        """The event, once it has come."""
        self._cri.wait(lambda: kind in self.kinds(id), f"event {kind} of {id}")
        return next(event for event in self.of(id) if event.container_event_type == kind)


@pytest.fixture
def heard(cri: CriTrial) -> Iterator[Heard]:
    cri.since("1.26")
    ears = Heard(cri)
    with cri.stream("GetContainerEvents") as stream:
        thread = threading.Thread(target=ears.listen, args=(stream,), daemon=True)
        thread.start()
        # A stream is heard from when something has come on it.
        cri.wait(lambda: ears.kinds(cri.run("true", pod=cri.pod()).box.id) != [], "the first event")
        yield ears
    thread.join(10)


@pytest.mark.breach(answers("GetContainerEvents.container_event_type", 1))
def test_events_follow_the_life_of_a_container(heard: Heard, cri: CriTrial) -> None:
    """Created, started, stopped, deleted: each once, in this order."""
    box = cri.create()
    heard.wait(box.id, CREATED_EVENT)
    cri.start(box)
    heard.wait(box.id, STARTED_EVENT)
    cri.stop(box)
    heard.wait(box.id, STOPPED_EVENT)
    cri.remove(box)
    heard.wait(box.id, DELETED_EVENT)
    assert heard.kinds(box.id) == [CREATED_EVENT, STARTED_EVENT, STOPPED_EVENT, DELETED_EVENT]


@pytest.mark.breach(answers("GetContainerEvents.containers_statuses"))
def test_events_have_the_statuses(heard: Heard, cri: CriTrial) -> None:
    """pod_sandbox_status and containers_statuses, as they are then; created_at is when."""
    before = time.time_ns()
    box = cri.launch(pod=cri.pod())
    started = heard.wait(box.id, STARTED_EVENT)
    assert before <= started.created_at <= time.time_ns()
    assert (started.pod_sandbox_status.id, started.pod_sandbox_status.state) == (box.pod.id, READY)
    assert [(status.id, status.state) for status in started.containers_statuses] == [(box.id, RUNNING)]
    cri.stop(box)
    stopped = heard.wait(box.id, STOPPED_EVENT)
    assert [(status.id, status.state, status.exit_code) for status in stopped.containers_statuses] == [
        (box.id, EXITED, 137)
    ]


def _deaf(request: dict[str, Any], call: Any) -> Any:
    event = call(request)
    event.container_event_type = CREATED_EVENT
    return event


@pytest.mark.breach(swaps("GetContainerEvents", _deaf))
def test_event_of_what_ends_by_itself(heard: Heard, cri: CriTrial) -> None:
    """Nobody called StopContainer."""
    box = cri.run("exit 3").box
    statuses = heard.wait(box.id, STOPPED_EVENT).containers_statuses
    assert [status.exit_code for status in statuses if status.id == box.id] == [3]


@pytest.mark.breach(answers("GetContainerEvents.container_event_type", 0))
def test_events_of_a_pod(heard: Heard, cri: CriTrial) -> None:
    """A pod sandbox is told of as a container of the same id, as clients expect."""
    pod = cri.pod()
    heard.wait(pod.id, STARTED_EVENT)
    cri.stop_pod(pod)
    heard.wait(pod.id, STOPPED_EVENT)
    cri.remove_pod(pod)
    heard.wait(pod.id, DELETED_EVENT)
