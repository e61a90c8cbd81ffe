"""Two processes work off the tests, and yet a test that measures a pace has the machine to itself."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds a file or folder for the block: from every other process, or with those only that share it, too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Waits for its turn: beside others, or alone.

    Args: folder: The same one for all processes.
    """
    for name in ("door", "room"):
        (folder / name).touch()
    with ExitStack() as stack:
        with locked(folder / "door"):  # who wants to be alone keeps it shut: else those who share would never let it in
            stack.enter_context(locked(folder / "room", shared=not alone))
        yield
