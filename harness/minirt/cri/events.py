"""What happens to containers and pods, told to whoever listens (CRI: GetContainerEvents).

Nobody polls: an event comes from the call that made it happen or from the supervisor's message that a container ended, and
goes into a queue of each listener's. One that does not fetch its events is let go, and told so: it has to list again.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.cri.description import Descriptions, pod_status
from harness.minirt.cri.records import Container, Pod
from harness.minirt.errors import Exhausted, Unavailable

_KINDS = {
    "created": api.ContainerEventType.CONTAINER_CREATED_EVENT,
    "started": api.ContainerEventType.CONTAINER_STARTED_EVENT,
    "stopped": api.ContainerEventType.CONTAINER_STOPPED_EVENT,
    "deleted": api.ContainerEventType.CONTAINER_DELETED_EVENT,
}

MOST_LISTENERS = 16
"""each of them keeps one of the threads that answer calls"""
LONGEST_BACKLOG = 1000


class Listener:
    """One who listens: an iterator of events, which ends when it is closed."""

    def __init__(self) -> None:
        self._events: collections.deque[Any] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._problem: Exception | None = None

    def put(self, event: Any) -> bool:
        """Append an event; False where it has too many waiting, and is closed for that."""
        with self._changed:
            if len(self._events) >= LONGEST_BACKLOG:
                self._events.clear()
                self._problem = Exhausted(
                    f"{LONGEST_BACKLOG} events were waiting to be fetched and are lost: list again, then listen again"
                )
            else:
                self._events.append(event)
            self._changed.notify()
            return self._problem is None

    def close(self, problem: Exception | None = None) -> None:
        """End the iteration: after what is waiting, with `problem` if there is one."""
        with self._changed:
            self._closed = True
            self._problem = self._problem or problem
            self._changed.notify()

    def __iter__(self) -> Iterator[Any]:
        """Wait for events. Raises `Exhausted` for one that was too slow, `Unavailable` when the daemon ends."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or self._closed or self._problem)
                if not self._events:
                    if self._problem is not None:
                        raise self._problem
                    return
                event = self._events.popleft()
            yield event


class Events:
    """Safe for threads."""

    def __init__(self, descriptions: Descriptions, find_pod: Callable[[str], Pod | None]) -> None:
        self._descriptions = descriptions
        self._find_pod = find_pod
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._ended = False

    def listen(self) -> Listener:
        """Hear everything from now on, until `leave`. Raises `Exhausted` where too many listen."""
        with self._lock:
            if self._ended:
                raise Unavailable("minirt is ending")
            if len(self._listeners) >= MOST_LISTENERS:
                raise Exhausted(f"{MOST_LISTENERS} clients listen to events already")
            listener = Listener()
            self._listeners.append(listener)
            return listener

    def leave(self, listener: Listener) -> None:
        """Hear nothing more."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)
        listener.close()

    def close(self) -> None:
        """Tell all who listen that the daemon ends."""
        with self._lock:
            self._ended = True
            for listener in self._listeners:
                listener.close(Unavailable("minirt is ending"))

    def container(self, what: str, container: Container) -> None:
        """A container was created, started, stopped or deleted."""
        self._tell(what, container.id, self._find_pod(container.pod_id))

    def pod(self, what: str, pod: Pod) -> None:
        """The same of a pod, which counts as a container with the pod's id."""
        self._tell(what, pod.id, pod)

    def _tell(self, what: str, id: str, pod: Pod | None) -> None:
        if not self._listeners:
            return
        event = api.ContainerEventResponse(
            container_id=id,
            container_event_type=_KINDS[what],
            created_at=time.time_ns(),
            pod_sandbox_status=None if pod is None else pod_status(pod),
            containers_statuses=[] if pod is None else self._descriptions.containers(pod.id),
        )
        with self._lock:
            self._listeners = [listener for listener in self._listeners if listener.put(event)]
