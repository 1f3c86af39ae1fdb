"""The verbs that make a container: create and run."""

from __future__ import annotations

import time
from sys import byteorder

from harness.linux import lean as os
from harness.linux.syscalls import CLONE_NEWPID
from harness.minirt.container import cgroup as cgroups
from harness.minirt.container import document, state
from harness.minirt.container.boundary import guard_descriptors
from harness.minirt.container.gate import Gate
from harness.minirt.container.launch import Launched, launch, remove_rdt_group
from harness.minirt.container.plan import make_plan
from harness.minirt.container.procfs import in_user_namespace
from harness.minirt.container.record import changed
from harness.minirt.container.spec import parse_spec
from harness.minirt.errors import SpecError, UsageError, step_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

    from harness.minirt.container.plan import Plan
    from harness.minirt.container.rights import Rights
    from harness.minirt.container.state import Container
    from harness.minirt.oci.arguments import Words
    from harness.minirt.oci.command import Context
    from harness.minirt.oci.foreground import Relay

SECCOMP_CACHE = "/run/minirt/seccomp"
_KEPT = ("personality", "memoryPolicy")
COUNTED = ("blkio",)
"""Engines read the counters of the cgroups in which they find a container: in the root they would be the machine's."""


def create(context: Context, words: Words) -> int:
    """Set a container up; the process, our child, outlives us."""
    pid_file = pid_file_of(words)
    container, _, _ = _create(context, words, foreground=False)
    write_pid_file(pid_file, container.pid)
    return 0


def run(context: Context, words: Words) -> int:
    """Create, start, and unless detached wait and delete; the process's exit status."""
    from harness.minirt.oci import lifecycle

    detached = words.has("detach")
    if not detached and not words.has("no-subreaper"):
        from harness.minirt.oci.foreground import adopt_orphans

        adopt_orphans()
    pid_file = pid_file_of(words)
    container, launched, relay = _create(context, words, foreground=not detached)
    try:
        write_pid_file(pid_file, container.pid)
        if detached:
            lifecycle.start_container(context, container)
            return 0
        from harness.minirt.oci import foreground

        foreground.hold_signals()
        if relay is not None:
            relay.open()
        lifecycle.start_container(context, container)
        status = foreground.see_through(launched, relay)
    except BaseException:
        lifecycle.destroy(context, container)
        raise
    if not words.has("keep"):
        lifecycle.destroy(context, container)
    return status


def read_plan(context: Context, words: Words, id: str) -> tuple[Plan, dict[str, object]]:
    """The plan for the bundle, and the config it came from. Raises `SpecError`; nothing has been made."""
    bundle = os.path.realpath(words.value("bundle", "."))
    path = f"{bundle}/config.json"
    try:
        content = document.read_file(path)
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0).lower()}") from None
    except ValueError as error:
        raise SpecError(path, str(error)) from None
    spec = parse_spec(content, bundle)
    sockets = activation_sockets()
    if sockets and spec.process is not None:
        # They are the container's: it is process 1 there.
        env = (*spec.process.env, f"LISTEN_FDS={sockets}", "LISTEN_PID=1")
        spec = changed(spec, process=changed(spec.process, env=env))
    if not os.path.isdir(spec.root):
        raise SpecError("root.path", f"{spec.root} is not a folder")
    if os.path.realpath(spec.root) != os.path.normpath(spec.root):
        raise SpecError("root.path", f"{spec.root} is a symbolic link, or lies behind one")
    unit = None
    if context.systemd:
        from harness.minirt.container import systemd

        whose = systemd.USER if os.geteuid() else systemd.SYSTEM
        unit = systemd.unit_of(spec.cgroups_path, id, whose, spec.annotations, spec.resources.unified)
        spec = changed(spec, cgroups_path=systemd.path_of(unit))
    plan = make_plan(
        spec,
        id=id,
        bundle=bundle,
        layout=cgroups.read_layout(named=unit is not None),
        pivot=not words.has("no-pivot"),
        new_keyring=not words.has("no-new-keyring"),
        preserved_fds=preserved_fds(words),
        seccomp_cache=SECCOMP_CACHE,
        counted=COUNTED,
        rights=read_rights(context),
    )
    if unit is not None:
        plan = changed(plan, cgroup=changed(plan.cgroup, unit=unit))
    return plan, content


def read_rights(context: Context) -> Rights | None:
    """What we may do; None: everything."""
    if context.rootless in ("", "auto") and os.geteuid() == 0 and not in_user_namespace():
        return None
    from harness.minirt.container import rights

    return rights.read_rights(context.rootless)


def _create(context: Context, words: Words, *, foreground: bool) -> tuple[Container, Launched, Relay | None]:
    id = state.check_id(words.arguments[0])
    guard_descriptors(preserved_fds(words))
    plan, content = read_plan(context, words, id)
    jumps, waits = _protect(plan, content)
    for warning in plan.warnings:
        context.log("warning", warning)
    for shortfall in plan.shortfalls:
        context.warn(shortfall)
    console = relay = pidfd_socket = None
    socket_path = words.value("console-socket")
    if socket_path and not plan.terminal:
        raise UsageError("a console socket is given, but process.terminal is false")
    if plan.terminal and not socket_path:
        if not foreground:
            raise UsageError("process.terminal needs --console-socket where nobody stays to relay the terminal")
        from harness.minirt.oci import foreground as relays

        relay = relays.Relay()
    elif socket_path:
        console = connect("console", socket_path)
    if words.value("pidfd-socket"):
        pidfd_socket = connect("pidfd", words.value("pidfd-socket"))
    container = record_of(words, id, plan, content)
    if waits and plan.process is not None:
        container = changed(container, command=plan.process.args[0])
    folder = state.reserve(context.root, id)
    launched = None
    try:
        # Written before there is anything, so that whatever a kill leaves can be found and deleted.
        state.save(folder, container)
        os.chdir(plan.bundle)
        with state.Lock(context.root, id):  # nobody starts it before all of it is there
            gate = Gate(folder)

            def born(pid: int) -> None:
                nonlocal container
                container = changed(container, pid=pid, pid_started=state.start_ticks(pid))
                state.save(folder, container)

            try:
                console_fd = relay.fd if relay is not None else -1 if console is None else console.fileno()
                launched = launch(
                    plan,
                    stdin=0,
                    stdout=1,
                    stderr=2,
                    gate=gate,
                    console=console_fd,
                    jumps=jumps,
                    waits=waits,
                    born=born,
                )
            finally:
                gate.close()
                if console is not None:
                    console.close()
            if launched.mounted:
                container = changed(container, beside=container.beside | {"mounted": launched.mounted})
                state.save(folder, container)
        if pidfd_socket is not None:
            send_pidfd(pidfd_socket, launched.pidfd)
    except BaseException:
        if launched is not None:
            os.kill(launched.pid, 9)
            os.waitpid(launched.pid, 0)
            plan.cgroup.kill_all()
            plan.cgroup.remove()
            remove_rdt_group(plan)
            if launched.mounted:
                from harness.minirt.container.inherited import unmount

                unmount(plan.root, launched.mounted)
        state.forget(context.root, id)
        if plan.hooks.get("poststop"):
            from harness.minirt.oci.lifecycle import run_poststop_hooks

            run_poststop_hooks(context, container)
        raise
    return container, launched, relay


def _protect(plan: Plan, content: dict[str, object]) -> tuple[bool, bool]:
    """See to it that the container cannot get hold of this program's file: whether a trampoline does, and also waits at the gate.

    Where a trampoline would not do this starts the program once more and does not come back, as if nothing had been done yet.
    """
    from harness.minirt.container import trampoline

    profile = _linux_part(content, "seccomp")
    if trampoline.suits(plan, profile) and trampoline.can_be_had():
        return True, trampoline.waits(plan, profile)
    from harness.minirt.container.sealing import seal

    seal()
    return False, False


def record_of(words: Words, id: str, plan: Plan, content: dict[str, object]) -> Container:
    """What will be remembered of a container that has no process yet."""
    return state.Container(
        id=id,
        version=plan.version,
        bundle=plan.bundle,
        root=plan.root,
        cgroup=plan.cgroup,
        created=_now(),
        annotations=plan.annotations,
        hooks={name: hooks for name, hooks in plan.hooks.items() if name in ("poststart", "poststop")},
        seccomp=_linux_part(content, "seccomp"),
        no_new_keyring=words.has("no-new-keyring"),
        beside=_beside(plan, content),
        resources=_linux_part(content, "resources"),
        own_pids=bool(plan.clone_flags & CLONE_NEWPID),
    )


def connect(what: str, path: str) -> socket:
    """The socket at `path`, connected; `what` it is for. Raises `StepError`."""
    from harness.minirt.container.terminal import connect_console

    try:
        return connect_console(path)
    except OSError as error:
        raise step_error(f"connect to the {what} socket", error) from None


def send_pidfd(end: socket, pidfd: int) -> None:
    """Send a descriptor of the process over a connected socket (``--pidfd-socket``), and close that."""
    from _socket import SCM_RIGHTS, SOL_SOCKET

    end.sendmsg([b"pidfd"], [(SOL_SOCKET, SCM_RIGHTS, pidfd.to_bytes(4, byteorder))])
    end.close()


def activation_sockets() -> int:
    """How many sockets, from descriptor 3 on, our starter hands us for the container (sd_listen_fds(3))."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return 0
    return int(count)


def preserved_fds(words: Words) -> int:
    """How many descriptors, from 3 on, the container gets: such sockets, then those of ``--preserve-fds``."""
    return activation_sockets() + words.number("preserve-fds")


def _linux_part(content: dict[str, object], name: str) -> dict[str, object] | None:
    linux = content.get("linux")
    part = linux.get(name) if isinstance(linux, dict) else None
    return part if isinstance(part, dict) else None


def _beside(plan: Plan, content: dict[str, object]) -> dict[str, object]:
    """What of the config outlives the creation, beside what `Container` has fields for."""
    linux = content.get("linux")
    found = {} if not isinstance(linux, dict) else {name: linux[name] for name in _KEPT if linux.get(name) is not None}
    if plan.rdt is not None:
        found["rdt"] = {"groups": [plan.rdt.folder, plan.rdt.monitor], "removed": plan.rdt.removed}
    return found


def _now() -> str:
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:09d}Z"


def pid_file_of(words: Words) -> str:
    """The absolute path of ``--pid-file``, which is the caller's: to be asked for before the working directory changes."""
    path = words.value("pid-file")
    return os.path.abspath(path) if path else ""


def write_pid_file(path: str, pid: int) -> None:
    """Write a pid file, if there is to be one, whole or not at all."""
    if not path:
        return
    folder, _, name = path.rpartition("/")
    fresh = f"{folder}/.{name}.{os.getpid()}"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    os.write(fd, str(pid).encode())
    os.close(fd)
    os.rename(fresh, path)
