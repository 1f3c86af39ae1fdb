"""exec: one more process in a running container."""

from __future__ import annotations

import os

from harness.linux.capabilities import BITS
from harness.minirt.container import document, state
from harness.minirt.container.enter import enter
from harness.minirt.container.process import Capabilities, Process, User, parse_process
from harness.minirt.container.reader import Reader
from harness.minirt.container.record import changed
from harness.minirt.container.sealing import seal
from harness.minirt.container.seccomp import compile_profile
from harness.minirt.errors import SpecError, UsageError, WrongState, step_error
from harness.minirt.oci.creation import SECCOMP_CACHE, write_pid_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.minirt.container.state import Container
    from harness.minirt.oci.arguments import Words
    from harness.minirt.oci.command import Context


def execute(context: Context, words: Words) -> int:
    """Start the process; unless detached wait for it and end with its exit status."""
    seal()
    container = state.load(context.root, words.arguments[0])
    status = state.status_of(context.root, container)
    if status == state.STOPPED:
        raise WrongState("cannot exec in a stopped container")
    if status == state.CREATED:
        raise WrongState("cannot exec in a container that is not running: it is created, not started")
    if status == state.PAUSED and not words.has("ignore-paused"):
        raise WrongState("cannot exec in a paused container (use --ignore-paused to override)")
    process = _process(words, container)
    console = relay = None
    socket_path = words.value("console-socket")
    detached = words.has("detach")
    if process.terminal and socket_path:
        from harness.minirt.container.terminal import connect_console

        try:
            console = connect_console(socket_path)
        except OSError as error:
            raise step_error("connect to the console socket", error) from None
    elif process.terminal:
        if detached:
            raise UsageError("a terminal needs --console-socket where nobody stays to relay it")
        from harness.minirt.oci.foreground import Relay

        relay = Relay()
    elif socket_path:
        raise UsageError("a console socket is given, but no terminal is asked for")
    if not detached:
        from harness.minirt.oci import foreground

        foreground.hold_signals()
    compiled = None if container.seccomp is None else compile_profile(container.seccomp, SECCOMP_CACHE)
    try:
        launched = enter(
            container.pid,
            process,
            container.cgroup,
            stdin=0,
            stdout=1,
            stderr=2,
            console=relay.fd if relay is not None else -1 if console is None else console.fileno(),
            seccomp_filter=compiled,
            keyring="" if container.no_new_keyring else f"_ses.{container.id}",
            preserved_fds=words.number("preserve-fds"),
            state=lambda: document.render(state.state_document(container, state.RUNNING)),
            beside=container.beside,
        )
    finally:
        if console is not None:
            console.close()
    write_pid_file(words, launched.pid)
    if detached:
        return 0
    return foreground.see_through(launched, relay)


def _process(words: Words, container: Container) -> Process:
    """The process: from ``--process``, or the container's own with what the options change."""
    path = words.value("process")
    if path:
        try:
            return parse_process(Reader(document.read_file(path), "process"))
        except OSError as error:
            raise UsageError(f"{path}: {os.strerror(error.errno or 0).lower()}") from None
        except ValueError as error:
            raise SpecError(path, str(error)) from None
    command = words.arguments[1:]
    if not command:
        raise UsageError("exec needs a command, or --process FILE")
    process = _own_process(container)
    capabilities = process.capabilities
    for name in words.lists.get("cap", ()):
        if name not in BITS:
            raise UsageError(f"no capability is called {name}")
        old, bit = capabilities or Capabilities(), 1 << BITS[name]
        capabilities = changed(
            old, bounding=old.bounding | bit, effective=old.effective | bit, permitted=old.permitted | bit
        )
    return changed(
        process,
        args=tuple(command),
        cwd=words.value("cwd", process.cwd),
        env=(*process.env, *words.lists.get("env", ())),
        user=_user(words, process.user),
        capabilities=capabilities,
        terminal=words.has("tty"),
        no_new_privileges=process.no_new_privileges or words.has("no-new-privs"),
        apparmor=words.value("apparmor", process.apparmor),
        selinux=words.value("process-label", process.selinux),
    )


def _own_process(container: Container) -> Process:
    content = document.read_file(f"{container.bundle}/config.json")
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
