"""What ``tmpcopyup`` asks for: a folder that begins with what it hides."""

from __future__ import annotations

import os
import stat


def fill(folder: str, like: int) -> None:
    """Give an empty folder what is in the folder behind a descriptor, and its owner and mode; one that has something stays."""
    with os.scandir(folder) as entries:
        if any(entries):
            return
    status = os.fstat(like)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    copy_tree(os.open(".", flags, dir_fd=like), os.open(folder, flags))
    os.chown(folder, status.st_uid, status.st_gid)
    os.chmod(folder, status.st_mode & 0o7777)


def copy_tree(source: int, target: int) -> None:
    """Copy what is in a folder (files, folders, links) into another; closes both descriptors."""
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            continue
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, dir_fd=target)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            copy_tree(os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=target))
        elif stat.S_ISREG(status.st_mode):
            old = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
            new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
            while os.sendfile(new, old, None, 1 << 20):
                pass
            os.close(old)
            os.close(new)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        os.chmod(name, status.st_mode & 0o7777, dir_fd=target)
    os.close(source)
    os.close(target)
