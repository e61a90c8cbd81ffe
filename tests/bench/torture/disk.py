"""A disk that is full when we want it to be."""

import contextlib
import os
import resource
import subprocess
from pathlib import Path

_LOG = 64 * 1024


class Disk:
    """A small disk. Where mounting one is not allowed, none of a process's files may grow, but for its log.

    Args: size: MiB.
    """

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(folder)]
        self.is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self, pid: int, leave: int = 0) -> None:
        """Args: pid: Who writes there. leave: Bytes that are still free then."""
        if not self.is_mounted:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (max(leave, _LOG), resource.RLIM_INFINITY))
            return
        with self._ballast.open("wb") as file:
            while (room := self._room() - leave) > 0:
                with contextlib.suppress(OSError):  # somebody else has just taken some of it
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), room)

    def _room(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def relieve(self, pid: int) -> None:
        """There is room again."""
        if not self.is_mounted:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return
        self._ballast.unlink()

    def close(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
