"""exec: one more process in a running container."""

from __future__ import annotations

import os

from harness.linux.capabilities import BITS
from harness.minirt.container import document, state
from harness.minirt.container.boundary import guard_descriptors
from harness.minirt.container.cgroup import read_layout
from harness.minirt.container.enter import enter
from harness.minirt.container.files import read_file
from harness.minirt.container.privileges import capability_warnings
from harness.minirt.container.process import Capabilities, Process, User, parse_process
from harness.minirt.container.reader import Reader
from harness.minirt.container.record import changed
from harness.minirt.errors import CgroupError, ExecError, MinirtError, SpecError, UsageError, WrongState
from harness.minirt.oci.creation import SECCOMP_CACHE, connect, pid_file_of, read_rights, send_pidfd, write_pid_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.minirt.container.cgroup import Cgroup
    from harness.minirt.container.launch import Launched
    from harness.minirt.container.state import Container
    from harness.minirt.oci.arguments import Words
    from harness.minirt.oci.command import Context
    from harness.minirt.oci.foreground import Relay


def execute(context: Context, words: Words) -> int:
    """Start the process; unless detached wait for it and end with its exit status.

    Raises `ContainerMissing`, and `ExecError` for whatever keeps the process from being started.
    """
    try:
        guard_descriptors(words.number("preserve-fds"))
        launched, relay = _start(context, words)
    except MinirtError as error:
        raise ExecError(error) from error
    except OSError as error:
        about = f": {os.fsdecode(error.filename)}" if error.filename else ""
        raise ExecError(f"{os.strerror(error.errno or 0).lower()}{about}") from error
    if words.has("detach"):
        return 0
    from harness.minirt.oci import foreground

    return foreground.see_through(launched, relay)


def _start(context: Context, words: Words) -> tuple[Launched, Relay | None]:
    container = state.load(context.root, words.arguments[0])
    status = state.status_of(context.root, container)
    if status == state.STOPPED:
        raise WrongState("cannot exec in a stopped container")
    if status == state.PAUSED and not words.has("ignore-paused"):
        raise WrongState("cannot exec in a paused container (use --ignore-paused to override)")
    process = _process(context, words, container)
    # Of the runtime's own rights it is not asked here.
    for warning in (*process.warnings, *capability_warnings(process, in_user_namespace=True)):
        context.log("warning", warning)
    rights = read_rights(context)
    if rights is not None and rights.rootless:
        from harness.minirt.container.rights import keep_within

        told: list[str] = []
        process = keep_within(process, told)
        for shortfall in told:
            context.warn(shortfall)
    place = _place(container, words.lists.get("cgroup", []))
    console = relay = pidfd_socket = None
    socket_path = words.value("console-socket")
    detached = words.has("detach")
    if process.terminal and socket_path:
        console = connect("console", socket_path)
    elif process.terminal:
        if detached:
            raise UsageError("cannot allocate tty if minirt will detach without setting console socket")
        from harness.minirt.oci.foreground import Relay

        relay = Relay()
    elif socket_path:
        raise UsageError("cannot use console socket if minirt will not detach or allocate tty")
    if words.value("pidfd-socket"):
        pidfd_socket = connect("pidfd", words.value("pidfd-socket"))
    if not detached:
        from harness.minirt.oci import foreground

        foreground.hold_signals()
    compiled = None
    if container.seccomp is not None:
        from harness.minirt.container.seccomp import compile_profile

        compiled = compile_profile(container.seccomp, SECCOMP_CACHE)
    try:
        launched = enter(
            container.pid,
            process,
            place,
            stdin=0,
            stdout=1,
            stderr=2,
            console=relay.fd if relay is not None else -1 if console is None else console.fileno(),
            seccomp_filter=compiled,
            keyring="" if container.no_new_keyring else f"_ses.{container.id}",
            state=lambda: document.render(state.state_document(container, state.RUNNING)),
            beside=container.beside,
            preserved_fds=words.number("preserve-fds"),
        )
    finally:
        if console is not None:
            console.close()
    if relay is not None:
        relay.open()
    if pidfd_socket is not None:
        send_pidfd(pidfd_socket, launched.pidfd)
    write_pid_file(pid_file_of(words), launched.pid)
    return launched, relay


def _place(container: Container, wanted: list[str]) -> Cgroup:
    """The container's cgroup, or those below it that ``--cgroup`` names: a path for all, or ``CONTROLLER[,...]:PATH``."""
    place = container.cgroup
    if not wanted:
        return _where_init_is(container) if place.version == 2 else place
    paths: dict[str, str] = {}
    for word in wanted:
        controllers, colon, path = word.partition(":")
        if not colon:
            if len(wanted) != 1:
                raise UsageError(f"invalid --cgroup argument: {word} (missing <controller>: prefix)")
            paths = dict.fromkeys(place.folders, word)
            break
        for controller in controllers.split(","):
            if not controller:
                raise UsageError(f"invalid --cgroup argument: {word} (empty <controller> prefix)")
            if controller in paths:
                raise UsageError(f"invalid --cgroup argument(s): controller {controller} specified multiple times")
            if controller not in place.folders:
                raise UsageError(f"unknown controller {controller} in --cgroup argument")
            paths[controller] = path
    folders = dict(place.folders)
    for controller, path in paths.items():
        if ".." in path.split("/"):
            raise UsageError(f"bad sub cgroup path: {path}")
        folder = f"{folders[controller]}/{path.strip('/')}".rstrip("/")
        if not os.path.isdir(folder):
            raise CgroupError(f"error adding pid to cgroups: {folder}: no such file or directory")
        folders[controller] = folder
    return changed(place, folders=folders)


def _where_init_is(container: Container) -> Cgroup:
    """The container's v2 cgroup, or where its first process has gone, if no process can be in there (any more).

    "No internal processes": a cgroup that gives controllers to those below it holds none itself (cgroup-v2.rst).
    """
    place = container.cgroup
    folder = place.folders.get("", "")
    try:
        if not folder or not read_file(f"{folder}/cgroup.subtree_control").strip():
            return place
    except FileNotFoundError:
        pass
    layout = read_layout()
    for line in read_file(f"/proc/{container.pid}/cgroup").splitlines():
        if line.startswith("0::/") and layout.unified is not None:
            return changed(place, folders={"": f"{layout.unified.folder}{line[3:]}"})
    return place


def _process(context: Context, words: Words, container: Container) -> Process:
    """The process: from ``--process``, or the container's own with what the options change."""
    path = words.value("process")
    if path:
        try:
            process = parse_process(Reader(document.read_file(path), "process"))
        except OSError as error:
            raise UsageError(f"{path}: {os.strerror(error.errno or 0).lower()}") from None
        except ValueError as error:
            raise SpecError(path, str(error)) from None
        return _completed(process, container)
    command = words.arguments[1:]
    if not command:
        raise UsageError("exec args cannot be empty: exec needs a command, or --process FILE")
    process = _own_process(container)
    capabilities = process.capabilities
    for name in words.lists.get("cap", ()):
        if name not in BITS:
            context.log("warning", f"ignoring unknown capability {name}")
            continue
        old, bit = capabilities or Capabilities(), 1 << BITS[name]
        capabilities = changed(
            old,
            bounding=old.bounding | bit,
            effective=old.effective | bit,
            permitted=old.permitted | bit,
            # Only what is inheritable too can be ambient.
            ambient=old.ambient | bit if old.inheritable else old.ambient,
        )
    return changed(
        process,
        args=tuple(command),
        cwd=words.value("cwd") or process.cwd,
        env=(*process.env, *words.lists.get("env", ())),
        user=_user(words, process.user),
        capabilities=capabilities,
        terminal=words.has("tty"),
        no_new_privileges=words.has("no-new-privs") or process.no_new_privileges,
        apparmor=words.value("apparmor") or process.apparmor,
        selinux=words.value("process-label") or process.selinux,
    )


def _completed(process: Process, container: Container) -> Process:
    """A process of a file of its own: what that does not say is as in the container's config."""
    try:
        own = _own_process(container)
    except MinirtError:  # the bundle is gone
        return process
    return changed(
        process,
        capabilities=own.capabilities if process.capabilities is None else process.capabilities,
        rlimits=process.rlimits or own.rlimits,
        oom_score_adj=own.oom_score_adj if process.oom_score_adj is None else process.oom_score_adj,
        apparmor=process.apparmor or own.apparmor,
        selinux=process.selinux or own.selinux,
    )


def _own_process(container: Container) -> Process:
    path = f"{container.bundle}/config.json"
    try:
        content = document.read_file(path)
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0).lower()}") from None
    except ValueError as error:
        raise SpecError(path, str(error)) from None
    return parse_process(Reader(content.get("process"), "process"))


def _user(words: Words, user: User) -> User:
    text = words.value("user")
    if text:
        uid, colon, gid = text.partition(":")
        if not uid.isdigit() or (colon and not gid.isdigit()):
            raise UsageError(f"--user {text!r} is not UID or UID:GID")
        user = User(int(uid), int(gid) if colon else user.gid, user.umask, user.groups)
    for gid in words.lists.get("additional-gids", ()):
        if not gid.isdigit():
            raise UsageError(f"--additional-gids {gid!r} is not a number")
        user = changed(user, groups=(*user.groups, int(gid)))
    return user
