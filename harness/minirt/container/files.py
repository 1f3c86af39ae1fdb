"""Reading and writing the small files of /proc, /sys and cgroups."""

from __future__ import annotations

from harness.linux import lean as os


def write_file(path: str, text: str) -> None:
    """Write to a file that exists, in one call; the error names it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    finally:
        os.close(fd)


def read_file(path: str) -> str:
    """A file's text, however long (procfs gives a page at a time)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    parts = []
    try:
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
    finally:
        os.close(fd)
    return b"".join(parts).decode(errors="surrogateescape")
