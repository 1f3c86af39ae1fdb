"""The short way to the modules of this package: from a name straight to the bytecode that Python has kept of it.

A command of minirt's loads some forty modules. To look for each along ``sys.path``, in lists of folders, takes more time
than all that the command then does. Here a name has one place; the bytecode is read there, as Python wrote it, provided that
it is the source's of now. Whatever is not as simple as that is left to Python's own way, which writes the bytecode as well.

The launcher executes this before there is any module: nothing but what is part of the interpreter may be imported.
"""

import sys
from marshal import loads
from posix import O_CLOEXEC, O_RDONLY, close, open, read, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_Spec = type(sys.__spec__)
_MAGIC = sys.modules["_frozen_importlib_external"].MAGIC_NUMBER + bytes(4)
"""how a file of bytecode begins that is to be compared with time and size of its source (PEP 552)"""
_TAG = sys.implementation.cache_tag


class Finder:
    """Finds and loads the package `top` and what is below it, in the folder `place`."""

    __slots__ = ("_below", "_place", "_top")

    def __init__(self, place: str, top: str) -> None:
        self._place, self._top, self._below = place, top, f"{top}."

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        if name != self._top and not name.startswith(self._below):
            return None
        folder, _, leaf = f"{self._place}/{name.replace('.', '/')}".rpartition("/")
        locations = None
        source = f"{folder}/{leaf}.py"
        code = read_bytecode(source, f"{folder}/__pycache__/{leaf}.{_TAG}.pyc")
        if code is None:
            source = f"{folder}/{leaf}/__init__.py"
            code = read_bytecode(source, f"{folder}/{leaf}/__pycache__/__init__.{_TAG}.pyc")
            if code is None:
                return None
            locations = [f"{folder}/{leaf}"]
        spec = _Spec(name, self, origin=source, loader_state=code)  # type: ignore[arg-type]
        spec.has_location = True
        spec.submodule_search_locations = locations
        return spec

    def create_module(self, spec: "ModuleSpec") -> None:
        """Have an ordinary one made."""

    def exec_module(self, module: "ModuleType") -> None:
        spec = module.__spec__
        assert spec is not None
        code, spec.loader_state = spec.loader_state, None
        exec(loads(code), module.__dict__)


def read_bytecode(source: str, cached: str) -> memoryview | None:
    """The code object in a file of bytecode, marshalled; None unless the file is there and was made of `source` as it is."""
    try:
        fd = open(cached, O_RDONLY | O_CLOEXEC)
    except OSError:
        return None
    try:
        origin = stat(source)
        data = read(fd, stat(fd).st_size)
    except OSError:
        return None
    finally:
        close(fd)
    made_of = (int(origin.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little") + (origin.st_size & 0xFFFFFFFF).to_bytes(
        4, "little"
    )
    return memoryview(data)[16:] if data[:16] == _MAGIC + made_of else None


def shorten(place: str, top: str = "harness") -> None:
    """Take the short way from now on, with the package that is in the folder `place`."""
    finder = Finder(place, top)
    if finder.find_spec("harness.minirt.loading") is None:
        # What the launcher executes is older than the source of this.
        from importlib import import_module

        finder = import_module("harness.minirt.loading").Finder(place, top)
    sys.meta_path.insert(0, finder)
