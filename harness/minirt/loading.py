"""The short way to the modules of this package: all that a command needs in one file, else each from the bytecode that Python
has kept of it.

A command of minirt's loads some fifty modules. To look for each along ``sys.path``, in lists of folders, takes more time than
all that the command then does. Here a name has one place (`Finder`); the bytecode is read there, as Python wrote it, provided
that it is the source's of now. What a module imports when it is loaded is moreover kept together in one file beside the
bytecode, a pack, written by the first command that may write there (`load`, `remember`): to read one file, and to
pass by all that an import statement does for a module that is new, halves the time once more. Whatever is not as simple as
that is left to Python's own way, which writes the bytecode as well.

The launcher executes the bytecode of this before there is any module: nothing but what is part of the interpreter may be
imported.
"""

import sys
from marshal import dumps, loads
from posix import (
    O_CLOEXEC,
    O_CREAT,
    O_EXCL,
    O_RDONLY,
    O_WRONLY,
    close,
    getpid,
    open,
    read,
    rename,
    stat,
    unlink,
    utime,
    write,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
    from typing import Any

_Spec = type(sys.__spec__)
_Module = type(sys)
_MAGIC: bytes = sys.modules["_frozen_importlib_external"].MAGIC_NUMBER + bytes(4)
"""how a file of bytecode begins that is to be compared with time and size of its source (PEP 552)"""
_TAG = sys.implementation.cache_tag
_HEAD = 16
"""bytes before the code: the above, and time and size of the source"""


class Finder:
    """Finds and loads the package `top` and what is below it, in the folder `place`."""

    __slots__ = ("_below", "_place", "_top", "loaded", "packs")

    def __init__(self, place: str, top: str) -> None:
        self._place, self._top, self._below = place, top, f"{top}."
        self.loaded: list[str] = []
        """modules that were found here, those first that were complete first"""
        self.packs: dict[str, list[str]] = {}
        """packs that are to be written: by their module, what they hold"""

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        if name != self._top and not name.startswith(self._below):
            return None
        found = self.find(name)
        if found is None:
            return None
        spec = _Spec(name, self, origin=found[0], loader_state=found[2])  # type: ignore[arg-type]
        spec.has_location = True
        spec.submodule_search_locations = found[1]
        return spec

    def find(self, name: str) -> "tuple[str, list[str] | None, memoryview, bytes] | None":
        """A module's source, the folder of its modules if it is a package, its code, marshalled, and what that was made of."""
        folder, _, leaf = f"{self._place}/{name.replace('.', '/')}".rpartition("/")
        source = f"{folder}/{leaf}.py"
        code = _read_bytecode(source, f"{folder}/__pycache__/{leaf}.{_TAG}.pyc")
        if code is not None:
            return source, None, *code
        source = f"{folder}/{leaf}/__init__.py"
        code = _read_bytecode(source, f"{folder}/{leaf}/__pycache__/__init__.{_TAG}.pyc")
        return None if code is None else (source, [f"{folder}/{leaf}"], *code)

    def create_module(self, spec: "ModuleSpec") -> None:
        """Have an ordinary one made."""

    def exec_module(self, module: "ModuleType") -> None:
        spec = module.__spec__
        assert spec is not None
        code, spec.loader_state = spec.loader_state, None
        exec(loads(code), module.__dict__)
        self.loaded.append(module.__name__)

    def load(self, name: str) -> None:
        """Load a module and what it imports, by its pack if there is a good one."""
        if name in sys.modules:
            return
        try:
            entries = loads(_read(self._pack(name)))
            fresh = all(_stamp(source) == stamp for _, source, _, stamp, _ in entries)
        except (OSError, EOFError, TypeError, ValueError):
            fresh = False
        if fresh:
            for name, source, folders, _, code in entries:
                if name not in sys.modules:
                    self._execute(name, source, folders, code)
            return
        before, known = len(self.loaded), set(sys.modules)
        __import__(name)
        names = self.loaded[before:]
        # Not before all of them have bytecode.
        if set(names) == {new for new in sys.modules if new not in known and new.startswith(self._below)}:
            self.packs[name] = names

    def _execute(self, name: str, source: str, folders: list[str] | None, code: "CodeType") -> None:
        parent, _, leaf = name.rpartition(".")
        module = _Module(name)
        module.__file__ = source
        module.__spec__ = _Spec(name, self, origin=source)  # type: ignore[arg-type]
        module.__package__ = parent if folders is None else name
        if folders is not None:
            module.__path__ = folders
        sys.modules[name] = module
        try:
            exec(code, module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
        setattr(sys.modules[parent], leaf, module)

    def _pack(self, name: str) -> str:
        return f"{self._place}/harness/minirt/__pycache__/{name}.{_TAG}.pack"

    def remember(self) -> None:
        """Write the packs that were missing or old; where that cannot be, they go on missing."""
        for name, names in self.packs.items():
            entries: list[tuple[Any, ...]] = []
            for one in names:
                found = self.find(one)
                if found is None:
                    return
                source, folders, code, stamp = found
                entries.append((one, source, folders, stamp, loads(code)))
            path = self._pack(name)
            fresh = f"{path}.{getpid()}"
            try:
                fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o644)
            except OSError:
                return
            try:
                data = dumps(tuple(entries))
                if write(fd, data) == len(data):
                    rename(fresh, path)
                else:
                    unlink(fresh)
            except OSError:
                unlink(fresh)
            finally:
                close(fd)


_finder: Finder | None = None


def load(name: str) -> None:
    """Load a module of the package before it is imported, by the shortest way that there is."""
    if _finder is not None:
        _finder.load(name)


def remember() -> None:
    """To be called at the end of a command: keep what makes the next one faster."""
    if _finder is not None and _finder.packs and not sys.dont_write_bytecode:
        _finder.remember()


def begin() -> None:
    """Run the command line of this process, with the package that this module is in. Does not return."""
    global _finder
    file = sys.modules[__name__].__file__ or ""
    if __name__ == "__main__":
        # The launcher had the interpreter execute <place>/harness/minirt/__pycache__/loading.cpython-311.pyc.
        place = file.rsplit("/", 4)[0]
        sys.path.append(place)
        sys.modules["harness.minirt.loading"] = sys.modules[__name__]
    else:
        place = file.rsplit("/", 3)[0]
        # An older one than the interpreter is none to the launcher, and this is as good as new.
        try:
            utime(f"{file.rpartition('/')[0]}/__pycache__/loading.{_TAG}.pyc")
        except OSError:
            pass
    _finder = Finder(place, "harness")
    sys.meta_path.insert(0, _finder)
    from harness.minirt.__main__ import main

    sys.exit(main())


def _read(path: str) -> bytes:
    fd = open(path, O_RDONLY | O_CLOEXEC)
    try:
        return read(fd, stat(fd).st_size)
    finally:
        close(fd)


def _read_bytecode(source: str, cached: str) -> tuple[memoryview, bytes] | None:
    """The code object in a file of bytecode, marshalled, and what it was made of; None unless that is `source` as it is."""
    try:
        data = _read(cached)
        stamp = _stamp(source)
    except OSError:
        return None
    return (memoryview(data)[_HEAD:], stamp) if data[:_HEAD] == stamp else None


def _stamp(source: str) -> bytes:
    """What a file of bytecode begins with that was made of `source`. Raises `OSError`."""
    found = stat(source)
    modified, size = int(found.st_mtime) & 0xFFFFFFFF, found.st_size & 0xFFFFFFFF
    return _MAGIC + modified.to_bytes(4, "little") + size.to_bytes(4, "little")


if __name__ == "__main__":
    begin()
