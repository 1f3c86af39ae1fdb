"""The supervisor's side of the protocol: what is asked, and what the answers are."""

from __future__ import annotations

import os
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM
from _socket import socket as Socket

from harness.minirt.container import cgroup as cgroups
from harness.minirt.container import document
from harness.minirt.container import state as states
from harness.minirt.container.enter import enter
from harness.minirt.container.idmap import can_map
from harness.minirt.container.launch import launch
from harness.minirt.container.plan import make_plan
from harness.minirt.container.process import parse_process
from harness.minirt.container.reader import Reader
from harness.minirt.container.record import changed
from harness.minirt.container.resources import parse_resources
from harness.minirt.container.spec import parse_spec
from harness.minirt.errors import AlreadyExists, CgroupError, InvalidArgument, MinirtError, NotFound, WrongState
from harness.minirt.supervisor.adoption import adopt
from harness.minirt.supervisor.attachment import Attachment
from harness.minirt.supervisor.container import Container
from harness.minirt.supervisor.execution import Execution, Place
from harness.minirt.supervisor.log import LogFile, timestamp
from harness.minirt.supervisor.peer import Peer
from harness.minirt.supervisor.pods import Pods
from harness.minirt.supervisor.protocol import VERSION
from harness.minirt.supervisor.stdio import Stdio, keep_log, send_descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from harness.minirt.container.cgroup import Cgroup
    from harness.minirt.container.launch import Launched
    from harness.minirt.container.process import Process, Rlimit
    from harness.minirt.container.spec import Spec
    from harness.minirt.supervisor.loop import Loop

_BACKLOG = 64
_SIGKILL = 9


class Server:
    """Answers daemons; owns the containers."""

    def __init__(self, loop: Loop, state: str, files: Rlimit) -> None:
        """`files`: the limit of open files of what is started; a specification's own comes after it, and wins."""
        self._loop = loop
        self._state = state
        self._files = files
        self._layout = cgroups.read_layout()
        self._containers: dict[str, Container] = {}
        self._pods = Pods(loop, state, self._tell_lost)
        self._subscribers: list[Peer] = []
        self._socket = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        self._ending = False
        self._when_quiet: list[Callable[[], None]] = []

    def listen(self) -> None:
        """Take the socket ``<state>/supervisor.sock``. The caller holds the lock that says nobody else has it."""
        path = f"{self._state}/supervisor.sock"
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        old = os.umask(0o177)
        try:
            self._socket.bind(path)
        finally:
            os.umask(old)
        self._socket.listen(_BACKLOG)
        self._socket.setblocking(False)
        self._loop.add(self._socket.fileno(), self._accept)

    def adopt(self) -> None:
        """Look after pods and containers that another supervisor has left, which was killed."""
        self._pods.adopt()
        for container in adopt(self._loop, self._state, self._layout, self._open_log):
            self._containers[container.id] = container
            container.when_ended(self._tell_end)

    def _accept(self) -> None:
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]  # `socket.accept`, without importing `socket`
        except OSError:
            return
        os.set_inheritable(fd, False)
        Peer(self._loop, Socket(AF_UNIX, SOCK_STREAM, 0, fd), self._dispatch, self._part)

    def _part(self, peer: Peer) -> None:
        if peer in self._subscribers:
            self._subscribers.remove(peer)

    def _dispatch(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> None:
        try:
            handler = _HANDLERS.get(message.get("op", ""))
            if handler is None:
                raise InvalidArgument(f"the supervisor knows no operation {message.get('op')!r}")
            result = handler(self, peer, message, fds)
        except MinirtError as error:
            peer.refuse(error)
        except OSError as error:
            peer.refuse(MinirtError(f"{message.get('op')}: {error}"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            peer.refuse(InvalidArgument(f"{message.get('op')}: {error!r}"))
        else:
            if result is not None:
                peer.say({"result": result})
        finally:
            for fd in fds:
                os.close(fd)

    # -- operations: each gives its answer, or None and answers later -------------------------------------------------

    def _hello(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        return {"version": VERSION, "pid": os.getpid(), "containers": [c.facts for c in self._containers.values()]}

    def _subscribe(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._subscribers.append(peer)
        return self._hello(peer, message, fds)

    def _create_pod(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> None:
        _plain(message["id"])
        self._pods.create(message, lambda problem: self._conclude(peer, problem))

    def _hold_pids(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._pods.hold_pids(_plain(message["id"]))
        return {}

    def _remove_pod(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> None:
        self._pods.remove(_plain(message["id"]), lambda problem: self._conclude(peer, problem))

    def _conclude(self, peer: Peer, problem: MinirtError | None) -> None:
        if problem is None:
            peer.say({"result": {}})
        else:
            peer.refuse(problem)

    def _tell_lost(self, id: str) -> None:
        for peer in list(self._subscribers):
            peer.say({"event": "pod ended", "id": id})

    def _can_map_ids(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Whether the filesystem that ``path`` is on can be shown to a user namespace."""
        return {"can": can_map(message["path"])}

    def _start(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Start the container whose config.json is in ``<state>/containers/<id>``."""
        id = _plain(message["id"])
        if self._ending:
            raise WrongState("minirt is shutting down")
        if id in self._containers:
            raise AlreadyExists(f"container {id} has been started before")
        folder = f"{self._state}/containers/{id}"
        spec = parse_spec(document.read_file(f"{folder}/config.json"), folder)
        if spec.process is not None:
            spec = changed(spec, process=self._limited(spec.process))
        plan = make_plan(
            spec,
            id=id,
            bundle=folder,
            layout=self._layout,
            overlay=message["overlay"],
            seccomp_cache=f"{self._state}/seccomp",
        )
        log = self._open_log(id, message["log"])
        container = Container(self._loop, id, folder, plan.cgroup, log)
        stdio = Stdio(folder, spec.process is not None and spec.process.terminal, message["stdin"])
        try:
            launched = stdio.give_to(
                lambda ends, console: launch(plan, stdin=ends[0], stdout=ends[1], stderr=ends[2], console=console)
            )
        except BaseException:
            stdio.close()
            log.close()
            raise
        try:
            keep_log(folder, message["log"])
            states.save(folder, _remembered(id, folder, spec, plan.cgroup, launched.pid))
        except OSError as error:
            # Its own command line will not know it; what matters is that it is looked after.
            print(f"container {id}: its state could not be written: {error}", flush=True)
        container.seccomp = plan.seccomp
        container.stdin, container.terminal = stdio.feed, stdio.terminal
        container.watch(launched.pid, launched.pidfd, stdio.outputs)
        self._containers[id] = container
        container.when_ended(self._tell_end)
        return container.facts

    def _open_log(self, id: str, path: str) -> LogFile:
        def tell(problem: str, lost_bytes: int) -> None:
            self._tell({"event": "log", "id": id, "path": path, "problem": problem, "lost_bytes": lost_bytes})

        return LogFile(path, tell)

    def _tell_end(self, facts: dict[str, Any]) -> None:
        self._tell({"event": "ended", **facts})
        self._look_if_quiet()

    def _tell(self, event: dict[str, Any]) -> None:
        for peer in list(self._subscribers):
            peer.say(event)

    def _stop(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> None:
        """Send a signal, kill after ``timeout_s``, answer with the facts once the container has ended."""
        container = self._get(message["id"])
        if container.running:
            if message["timeout_s"] > 0:
                if not container.told_to_stop:
                    container.told_to_stop = True
                    container.signal(message["signal"])
                container.kill_after(message["timeout_s"], self._kill)
            else:
                self._kill(container)
        container.when_ended(lambda facts: peer.say({"result": facts}))

    def _kill(self, container: Container) -> None:
        container.signal(_SIGKILL)
        try:
            # A frozen process does not even take SIGKILL (v1) before it is let go.
            if container.cgroup.is_frozen():
                container.cgroup.thaw()
        except CgroupError as error:
            print(f"container {container.id}: {error}", flush=True)

    def _update(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Change the limits of a running container to ``resources`` (as config.json has them), all or none."""
        from harness.minirt.container.updating import extend

        container = self._get(message["id"])
        if not container.running:
            return {}
        resources = parse_resources(Reader(message["resources"], "linux.resources"))
        wider = extend(self._layout, container.cgroup, message["cgroup"], resources)
        if wider is not container.cgroup:
            container.cgroup = wider
            known = states.load(f"{self._state}/containers", container.id)
            states.save(container.folder, changed(known, cgroup=wider))
        wider.update(resources)
        return {}

    def _forget(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        container = self._containers.get(message["id"])
        if container is not None:
            if container.running:
                raise WrongState(f"container {container.id} is running")
            container.end_cgroup()  # gone already, but for what could not be killed then
            del self._containers[container.id]
        return {}

    def _exec(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> None:
        """Run ``process`` (as config.json has it) with the three descriptors as its stdio; answers when it has ended.

        A fourth is the socket over which the terminal is sent, if ``process`` has one. Whoever hangs up before has it
        killed with all that it started, unless it ``lingers``.
        """
        container = self._get(message["id"])
        if not container.running:
            raise WrongState(f"container {container.id} is not running")
        if len(fds) != (4 if message["process"].get("terminal") else 3):
            raise InvalidArgument("exec needs three descriptors, four with a terminal")
        place = Place(container.cgroup)
        try:
            launched = self._enter(container, place.cgroup, message["process"], fds)
        except BaseException:
            place.remove()
            raise

        def done(result: dict[str, Any]) -> None:
            peer.on_close = None
            peer.say({"result": result})

        execution = Execution(self._loop, launched, place, done, container.left.append)
        container.sweep()
        if not message["lingers"]:
            peer.on_close = execution.kill
        if message["timeout_s"] > 0:
            execution.limit(message["timeout_s"])

    def _limited(self, process: Process) -> Process:
        return changed(process, rlimits=(self._files, *process.rlimits))

    def _enter(self, container: Container, cgroup: Cgroup, process: dict[str, Any], fds: list[int]) -> Launched:
        if container.cgroup.is_frozen():
            raise WrongState(f"container {container.id} is paused")
        stdin, stdout, stderr, *console = fds
        return enter(
            container.pid,
            self._limited(parse_process(Reader(process, "process"))),
            cgroup,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            console=console[0] if console else -1,
            seccomp_filter=container.seccomp,
            state=lambda: self._state_of(container.id),
        )

    def _state_of(self, id: str) -> str:
        """The text of a container's state, for its seccomp agent."""
        return document.render(states.state_document(states.load(f"{self._state}/containers", id), states.RUNNING))

    def _attach(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> None:
        """Copy the streams named in ``outputs`` to descriptors; answers when the container has ended.

        The first descriptor is a socket over which what the container reads from is sent: its terminal, or a pipe; nothing
        where it reads nothing. The others are pipes, one for each name.
        """
        container = self._get(message["id"])
        if not container.running:
            raise WrongState(f"container {container.id} is not running")
        names: list[str] = message["outputs"]
        if len(fds) != 1 + len(names) or not set(names) <= {"stdout", "stderr"}:
            raise InvalidArgument("attach needs a socket, and a pipe for each output")
        entrance = container.terminal if container.terminal >= 0 else container.stdin
        if entrance >= 0:
            send_descriptor(fds[0], entrance)

        def ended(facts: dict[str, Any]) -> None:
            peer.on_close = None
            peer.say({"result": facts})

        pipes = {name: os.dup(fd) for name, fd in zip(names, fds[1:], strict=True)}
        attachment = Attachment(self._loop, pipes, container.let_go, ended)
        container.attach(attachment)
        peer.on_close = lambda: container.detach(attachment)

    def _close_stdin(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._get(message["id"]).close_stdin()
        return {}

    def _reopen_log(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        container = self._get(message["id"])
        if not container.running:
            raise WrongState(f"container {container.id} is not running")
        container.log.reopen()
        return {}

    def _kill_all(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> None:
        """Kill every container; answers once all have ended."""
        self._when_quiet.append(lambda: peer.say({"result": {}}))
        for container in list(self._containers.values()):
            if container.running:
                self._kill(container)
        self._look_if_quiet()

    def _shut_down(self, peer: Peer, message: dict[str, Any], fds: list[int]) -> None:
        """Kill every container, remove what every pod holds, answer, and end."""
        self.end(lambda: peer.say({"result": {}}))

    # -- the end ---------------------------------------------------------------------------------------------------

    def end(self, call: Callable[[], None] = lambda: None) -> None:
        """Kill everything; once it is gone, `call` and stop the loop."""
        self._ending = True
        self._when_quiet.append(self._close)
        self._when_quiet.append(call)
        for container in list(self._containers.values()):
            if container.running:
                self._kill(container)
        self._look_if_quiet()

    def _look_if_quiet(self) -> None:
        if self._when_quiet and not any(container.running for container in self._containers.values()):
            waiting, self._when_quiet = self._when_quiet, []
            for call in waiting:
                call()

    def _close(self) -> None:
        self._pods.remove_all()
        self._loop.remove(self._socket.fileno())
        self._socket.close()
        try:
            os.unlink(f"{self._state}/supervisor.sock")
        except FileNotFoundError:
            pass
        self._loop.stop()

    def _get(self, id: str) -> Container:
        container = self._containers.get(id)
        if container is None:
            raise NotFound(f"container {id} has not been started")
        return container


def _remembered(id: str, folder: str, spec: Spec, cgroup: Cgroup, pid: int) -> states.Container:
    """What the OCI command line is to know of a container."""
    return states.Container(
        id=id,
        version=spec.version,
        bundle=folder,
        root=spec.root,
        cgroup=cgroup,
        created=timestamp(time.time_ns()).decode(),
        pid=pid,
        pid_started=states.start_ticks(pid),
        annotations=spec.annotations,
        seccomp=spec.seccomp,
    )


def _plain(id: str) -> str:
    """`id`, once it is certain that it is one word of a path."""
    if not id or "/" in id or id.startswith(".") or "\0" in id:
        raise InvalidArgument(f"{id!r} is not an id")
    return id


_HANDLERS: dict[str, Any] = {
    "hello": Server._hello,
    "subscribe": Server._subscribe,
    "create pod": Server._create_pod,
    "hold pids": Server._hold_pids,
    "remove pod": Server._remove_pod,
    "can map ids": Server._can_map_ids,
    "start": Server._start,
    "stop": Server._stop,
    "update": Server._update,
    "forget": Server._forget,
    "exec": Server._exec,
    "attach": Server._attach,
    "close stdin": Server._close_stdin,
    "reopen log": Server._reopen_log,
    "kill all": Server._kill_all,
    "shut down": Server._shut_down,
}
