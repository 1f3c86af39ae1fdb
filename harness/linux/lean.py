"""What minirt uses of `os`, from the built-in module beneath it: to load `os` takes a tenth of the time of a command.

The names and what they do are those of `os`, whose functions most of them are; what is missing here, a module that is rarely
needed gets from `os` itself. To be imported ``as os``.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import *  # noqa: F403
    from os import _exit as _exit
    from os import path as path
else:
    import posix
    from posix import *  # noqa: F403

    del environ  # of bytes, and as the process was started (see `__getattr__`)  # noqa: F821
    _exit = posix._exit
    SEEK_SET = 0

    def fsencode(name):
        """The bytes of a file's name; what was no text in it comes back as it was."""
        name = posix.fspath(name)
        return name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name

    def fsdecode(name):
        """The text of a file's name."""
        name = posix.fspath(name)
        return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name

    def makedirs(name, mode=0o777, exist_ok=False):
        """Make a folder and those above it."""
        head = path.dirname(name.rstrip("/"))
        if head and not path.exists(head):
            makedirs(head, exist_ok=True)
        try:
            posix.mkdir(name, mode)
        except OSError:
            if not exist_ok or not path.isdir(name):
                raise

    class path:
        """The part of `os.path` that commands need."""

        @staticmethod
        def _stat(name, call=posix.stat):
            try:
                return call(name)
            except (OSError, ValueError):
                return None

        @staticmethod
        def exists(name):
            return path._stat(name) is not None

        @staticmethod
        def lexists(name):
            return path._stat(name, posix.lstat) is not None

        @staticmethod
        def isdir(name):
            found = path._stat(name)
            return found is not None and found.st_mode & 0o170000 == 0o040000

        @staticmethod
        def islink(name):
            found = path._stat(name, posix.lstat)
            return found is not None and found.st_mode & 0o170000 == 0o120000

        @staticmethod
        def dirname(name):
            head = name[: name.rfind("/") + 1]
            return head.rstrip("/") or head

        @staticmethod
        def basename(name):
            return name[name.rfind("/") + 1 :]

        @staticmethod
        def normpath(name):
            parts = []
            for part in name.split("/"):
                if part == ".." and (parts or name[:1] == "/") and parts[-1:] != [".."]:
                    del parts[-1:]
                elif part not in ("", "."):
                    parts.append(part)
            # POSIX leaves to the system what two slashes at the beginning mean; to Linux they are one.
            return ("/" if name[:1] == "/" else "") + "/".join(parts) or "."

        @staticmethod
        def abspath(name):
            return path.normpath(name if name[:1] == "/" else f"{posix.getcwd()}/{name}")

        @staticmethod
        def realpath(name):
            """The kernel's own word for what a name leads to; for one that leads nowhere, its absolute form."""
            try:
                fd = posix.open(name, posix.O_PATH | posix.O_CLOEXEC)
            except (OSError, ValueError):
                return path.abspath(name)
            try:
                return posix.readlink(f"/proc/self/fd/{fd}")
            finally:
                posix.close(fd)

    def __getattr__(name):
        if name != "environ":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if "os" in sys.modules:  # loaded all the same: what it has changed of the environment counts
            return sys.modules["os"].environ
        return {fsdecode(key): fsdecode(value) for key, value in posix.environ.items()}
