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
            new = os.open(name, flags, dir_fd=target)
            copy_tree(os.open(name, flags, dir_fd=source), os.dup(new))
        elif stat.S_ISREG(status.st_mode):
            # A pipe that has taken the file's place meanwhile shall not keep us waiting.
            old = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
            new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
            while stat.S_ISREG(os.fstat(old).st_mode) and os.sendfile(new, old, None, 1 << 20):
                pass
            os.close(old)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            continue
        # By descriptor: whoever shares the target could put a symbolic link in the place of the name.
        os.fchown(new, status.st_uid, status.st_gid)
        os.fchmod(new, status.st_mode & 0o7777)
        os.close(new)
    os.close(source)
    os.close(target)
