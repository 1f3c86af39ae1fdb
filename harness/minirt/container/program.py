"""The last steps: finding the program, waiting at the gate, executing it."""

from __future__ import annotations

import errno
import stat

from harness.linux import lean as os
from harness.linux import syscalls
from harness.linux.capabilities import BITS
from harness.minirt.container.hooks import Hook, run_hooks
from harness.minirt.container.operations import Operation, Stage
from harness.minirt.container.record import Record
from harness.minirt.errors import CommandError

_LONGEST_PASSWD = 1 << 20
_FILE_CAPABILITIES = 1 << BITS["CAP_DAC_OVERRIDE"] | 1 << BITS["CAP_DAC_READ_SEARCH"]
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_program(word: str, path: str) -> str:
    """The file that `word` names, as execvp(3) finds it. Raises `CommandError`."""
    if "/" in word:
        _check(word, word)
        return word
    denied = None
    for folder in path.split(":"):
        candidate = f"{folder or '.'}/{word}"
        try:
            _check(word, candidate)
        except CommandError as error:
            if error.errno != errno.ENOENT:
                denied = error
        else:
            return candidate
    if denied is not None:
        raise denied
    raise CommandError(word, errno.ENOENT, "executable file not found in $PATH")


def _check(word: str, path: str) -> None:
    try:
        status = os.stat(path)
    except OSError as error:
        number = errno.ENOENT if error.errno == errno.ENOTDIR else error.errno or 0
        raise CommandError(word, number, f"stat {path}: {os.strerror(error.errno or 0).lower()}") from None
    if stat.S_ISDIR(status.st_mode):
        raise CommandError(word, errno.EACCES, "is a directory: permission denied")
    if not os.access(path, os.X_OK, effective_ids=True):
        raise CommandError(word, errno.EACCES, "permission denied")


def home_of(passwd: str, uid: int) -> str:
    """The home folder of a user in the text of /etc/passwd, ``/`` where it is not there."""
    for line in passwd.splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and fields[2] == str(uid):
            return fields[5] or "/"
    return "/"


def _read_passwd() -> str:
    """The beginning of the container's /etc/passwd; nothing where it is not an ordinary file that can be read."""
    try:
        fd = os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    text = os.read(fd, _LONGEST_PASSWD) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    os.close(fd)
    return text.decode(errors="replace")


class FindProgram(Operation):
    """Find the program in the container, and complete the environment by HOME."""

    command: str
    env: tuple[str, ...]
    uid: int
    effective: int = 0
    """the capabilities that the process will have in effect"""

    @property
    def title(self) -> str:
        return f"find the program {self.command!r}"

    def perform(self, stage: Stage) -> None:
        # The last of several values counts, as it does for those who set them.
        values = {entry.partition("=")[0]: entry for entry in self.env if entry}
        path = values.get("PATH", f"PATH={_DEFAULT_PATH}")[5:]
        if values.get("HOME", "HOME=") == "HOME=":
            values["HOME"] = f"HOME={home_of(_read_passwd(), self.uid)}"
        stage.env = list(values.values())
        if self.uid and self.effective & _FILE_CAPABILITIES:
            # A user has nothing in effect at this moment, but will have when the kernel looks for the program.
            _, permitted, inheritable = syscalls.capget()
            syscalls.capset(self.effective & _FILE_CAPABILITIES & permitted, permitted, inheritable)
        stage.program = find_program(self.command, path)


class Leave(Operation):
    """Close and undo what is the runtime's, and make the trampoline if there is to be one.

    Close-on-exec would be too late: the program's own path may go through a descriptor (/proc/self/fd/N). To be done before
    the filter is loaded, from which on nothing is sure but what it takes to execute.
    """

    args: tuple[str, ...]

    @property
    def title(self) -> str:
        return "leave the runtime"

    def perform(self, stage: Stage) -> None:
        gate = set() if stage.gate is None else stage.gate.fds()
        stage.close_others({stage.channel.fd, *gate})
        syscalls.reset_signals()
        if stage.jumps:
            from harness.minirt.container.trampoline import Jump, open_trampoline

            jump = Jump(stage.program, self.args, tuple(stage.env), stage.waits)
            stage.trampoline = open_trampoline(_reported(stage), jump)


def _reported(stage: Stage) -> int:
    """What a trampoline reports to, or waits at."""
    if not stage.waits:
        return stage.channel.fd
    assert stage.gate is not None
    return stage.gate.listener.fileno()


class AwaitStart(Operation):
    """Say that all is ready, and wait at the gate until somebody says start."""

    @property
    def title(self) -> str:
        return "wait to be started"

    def perform(self, stage: Stage) -> None:
        stage.channel.send("ready")
        stage.channel.close()
        assert stage.gate is not None
        stage.channel = stage.gate.await_start()


class LackProcess(Operation):
    """What `start` finds of a container whose config has no process: "This operation MUST generate an error"."""

    @property
    def title(self) -> str:
        return "start the process"

    def perform(self, stage: Stage) -> None:
        raise OSError(errno.EINVAL, "config.json has no process")


class RunHooks(Operation):
    """Run hooks inside the container's namespaces; `state` lacks the pid, which only the child knows.

    They run in the container's root folder; before the root is changed, by its path as the machine has it.
    """

    name: str
    hooks: tuple[Hook, ...]
    state: str

    @property
    def title(self) -> str:
        return f"run {self.name} hooks"

    def perform(self, stage: Stage) -> None:
        if self.name == "createContainer":
            os.fchdir(stage.root)
        env = stage.env if self.name == "startContainer" else ()
        run_hooks(self.name, self.hooks, self.state.replace("@pid@", str(os.getpid())), env)


class Program(Record):
    """What is executed at the very end."""

    args: tuple[str, ...]

    def execute(self, stage: Stage) -> None:
        """Does not return. Raises `CommandError`."""
        try:
            if stage.trampoline >= 0:
                from harness.minirt.container.trampoline import execute

                stage.channel.send(*(("ready",) if stage.waits else ("jump", self.args[0])))
                try:
                    execute(stage.trampoline, _reported(stage))
                finally:
                    if stage.waits and stage.gate is not None:  # whoever starts us is told why this could not be
                        stage.channel = stage.gate.await_start()
            os.execve(stage.program, self.args, dict(entry.partition("=")[::2] for entry in stage.env))
        except OSError as error:
            number = error.errno or 0
            raise CommandError(self.args[0], number, os.strerror(number).lower()) from None
        except ValueError as error:
            raise CommandError(self.args[0], errno.EINVAL, str(error)) from None
