"""A simulated disk, which several hosts share: full, failing, torn writes, lost renames, stale listings as on NFS."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import PurePosixPath
from posixpath import basename, dirname
from random import Random
from types import SimpleNamespace
from typing import Any, NoReturn

from scripts.chaos.virtual_time import Clock, Killed, Process

OPERATION_S = 0.002
"""Virtual seconds of an operation on a file."""
DURABLE_AFTER_S = 5.0
"""Seconds after which a change of a folder or a file survives a power cut although nothing has synchronised it."""
STALE_S = 30.0
"""Seconds for which NFS may answer from a host's own copy of a folder (`acdirmin`)."""


Change = Callable[[], Callable[[], None]]
"""Changes files at once, and returns how to take the change back."""


class Content(bytes):
    """The content of a file; a power cut before `durable_at` may cut it to half."""

    durable_at: float

    def __new__(cls, data: bytes, durable_at: float) -> "Content":
        content = super().__new__(cls, data)
        content.durable_at = durable_at
        return content


class Disk:
    """The files by path.

    Attributes:
        fault: ENOSPC, which every write raises; EIO, which every operation raises; None: the disk works.
        stale: whether hosts see the names in folders as they were when they last read them.
        crashed_at: when a process last crashed at a write.
        changed_at: when each host last changed a file.
    """

    def __init__(self, clock: Clock, random: Random) -> None:
        self.clock, self.random = clock, random
        self.files: dict[str, Content] = {}
        self.opened: list[Content] = []
        self.folders: set[str] = {"/"}
        self.undo: list[tuple[float, str, Callable[[], None]]] = []
        self.listings: dict[tuple[str, str], tuple[float, list[str]]] = {}
        self.fault: int | None = None
        self.stale = False
        self.crashed_at = 0.0
        self.changed_at: dict[str, float] = {}

    def operate(self) -> None:
        """Let an operation take its time; raises OSError while the disk fails."""
        self.clock.sleep(OPERATION_S)
        if self.fault == errno.EIO:
            raise OSError(self.fault, os.strerror(self.fault))

    def change(self, folder: str, apply: Change, half: Callable[[], Any] | None = None) -> None:
        """Change files below a folder; `apply` returns how to take the change back after a power cut.

        Raises:
            OSError: `fault`.
            Killed: the process crashes at this write, before it, after it, or half-way.
        """
        self.operate()
        process = self.clock.process
        if self.fault is not None and half is not None:  # a full disk deletes files
            raise OSError(self.fault, os.strerror(self.fault))
        crashes = process.crashes_now()
        if crashes and (process.torn or self.random.random() < 0.5):
            if process.torn and half:
                half()
            self.crash(process)
        self.undo.append((self.clock.now, folder, apply()))
        self.listings.pop((process.host, folder), None)
        self.changed_at[process.host] = self.clock.now
        if crashes:
            self.crash(process)

    def crash(self, process: Process) -> NoReturn:
        """Kill the running process; raises Killed."""
        self.crashed_at = self.clock.now
        process.kill()
        raise Killed

    def sync(self, descriptor: str | int) -> None:
        """Make the content of an opened file durable, or all changes of a folder; in place of `os.fsync`."""
        self.operate()
        if isinstance(descriptor, int):
            self.sync_content(self.opened[descriptor])
        else:
            self.undo = [entry for entry in self.undo if entry[1] != descriptor]

    def sync_content(self, content: "Content") -> None:
        """Make the content of a file durable."""
        content.durable_at = self.clock.now

    def lose_power(self) -> None:
        """Take back a random number of the latest changes of every folder that are not durable, and cut files."""
        recent = [entry for entry in self.undo if entry[0] > self.clock.now - DURABLE_AFTER_S]
        kept = {folder: self.random.randint(0, sum(e[1] == folder for e in recent)) for _, folder, _ in recent}
        lost = []
        for _, folder, take_back in recent:
            kept[folder] -= 1
            if kept[folder] < 0:
                lost.append(take_back)
        for take_back in reversed(lost):
            take_back()
        for path, content in self.files.items():
            if content.durable_at > self.clock.now and self.random.random() < 0.5:
                self.files[path] = Content(content[: len(content) // 2], self.clock.now)
        self.undo, self.listings = [], {}

    def names(self, folder: str) -> list[str]:
        """Return the sorted names in a folder as this host sees them."""
        self.operate()
        known = self.stale_names(folder)
        if known is not None:
            return known
        below = folder.rstrip("/") + "/"
        inside = (path[len(below) :] for path in (*self.files, *self.folders) if path.startswith(below))
        found = sorted({name.partition("/")[0] for name in inside if name})
        self.listings[self.clock.process.host, folder] = (self.clock.now, found)
        return found

    def stale_names(self, folder: str) -> list[str] | None:
        """Return the names in a folder when this host last read it; None if it would read it again."""
        read_at, found = self.listings.get((self.clock.process.host, folder), (0.0, []))
        return found if self.stale and self.clock.now < read_at + STALE_S else None

    def has_file(self, path: str) -> bool:
        """Return whether a path is a file, as this host sees it."""
        known = self.stale_names(dirname(path))
        if known is None:
            return path in self.files
        return basename(path) in known and path not in self.folders

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file; half of the data is there if the process crashes on the way."""
        durable_at = self.clock.now + DURABLE_AFTER_S
        content, half = Content(data, durable_at), Content(data[: len(data) // 2], durable_at)
        self.change(dirname(path), lambda: self.put(path, content), lambda: self.put(path, half))

    def rename(self, source: str, target: str) -> None:
        """Rename a file, replacing another one, or a folder."""
        self.change(dirname(target), lambda: self.move(source, target))

    def unlink(self, path: str) -> None:
        """Delete a file; raises FileNotFoundError."""
        self.change(dirname(path), lambda: self.put(path, None))

    def content(self, path: str) -> "Content":
        """Return the content of a file; raises FileNotFoundError."""
        if path not in self.files:
            raise missing(path)
        return self.files[path]

    def descriptor(self, path: str) -> int:
        """Open the content of a file for `sync_content`; returns its number."""
        self.opened.append(self.content(path))
        return len(self.opened) - 1

    def put(self, path: str, data: "Content | None") -> Callable[[], None]:
        """Set or delete a file at once; returns how to take it back."""
        before = self.files.get(path)
        if data is not None:
            self.files[path] = data
        else:
            self.content(path)
            del self.files[path]
        return lambda: void(self.files.pop(path, None) if before is None else self.files.update({path: before}))

    def move(self, source: str, target: str) -> Callable[[], None]:
        """Rename at once; returns how to take it back, raises FileNotFoundError."""
        if source not in self.files and source not in self.folders:
            raise missing(source)
        before, folders = dict(self.files), set(self.folders)
        for path in [p for p in self.files if p == source or p.startswith(f"{source}/")]:
            self.files[target + path[len(source) :]] = self.files.pop(path)
        self.folders = {target + f[len(source) :] if f == source or f.startswith(f"{source}/") else f for f in folders}
        changed = {p for p in (*before, *self.files) if before.get(p) is not self.files.get(p)}

        def take_back() -> None:
            self.folders = folders | self.folders
            for path in changed:
                self.files.pop(path, None)
                if path in before:
                    self.files[path] = before[path]

        return take_back

    def remove_tree(self, path: Any, ignore_errors: bool = False) -> None:
        """Delete a folder with everything below, in place of `shutil.rmtree`."""
        for name in [p for p in self.files if p.startswith(f"{path}/")]:
            self.unlink(name)
        self.folders = {f for f in self.folders if f != str(path) and not f.startswith(f"{path}/")}

    @property
    def path_class(self) -> "type[SimulatedPath]":
        """Return the class of this disk's paths, in place of `pathlib.Path`."""
        return type("Path", (SimulatedPath,), {"disk": self})

    @property
    def os(self) -> Any:
        """Return what the product uses of the module `os`."""
        paths = self.path_class
        return SimpleNamespace(
            O_RDONLY=os.O_RDONLY,
            open=lambda folder, flags: str(folder),
            close=lambda folder: None,
            fsync=self.sync,
            replace=lambda source, target: self.rename(str(source), str(target)),
            walk=lambda folder: paths(folder).walk(),
        )


class SimulatedPath(PurePosixPath):
    """A path on a simulated disk, with the methods of `pathlib.Path` that the product calls."""

    disk: Disk

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        return self.disk.has_file(str(self))

    def is_dir(self) -> bool:
        return str(self) in self.disk.folders

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        if not self.is_dir():
            self.disk.folders.add(str(self))
            self.parent.mkdir()

    def iterdir(self) -> "Iterator[SimulatedPath]":
        return (self / name for name in self.disk.names(str(self)))

    def glob(self, pattern: str) -> "Iterator[SimulatedPath]":
        return (path for path in self.iterdir() if fnmatch(path.name, pattern))

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        found = list(self.iterdir())
        yield str(self), [p.name for p in found if p.is_dir()], [p.name for p in found if p.is_file()]
        for path in found:
            if path.is_dir():
                yield from path.walk()

    def read_bytes(self) -> bytes:
        self.disk.operate()
        return self.disk.content(str(self))

    def lstat(self) -> Any:
        return SimpleNamespace(st_size=len(self.disk.content(str(self))))

    def open(self, mode: str) -> "SimulatedFile":
        if mode == "xb" and self.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))
        return SimulatedFile(self)

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok or self.is_file():
            self.disk.unlink(str(self))

    def rename(self, target: "SimulatedPath") -> None:
        self.disk.rename(str(self), str(target))


class SimulatedFile(io.BytesIO):
    """A file that is being written; its content can be read once it is flushed, and is durable once it is synced."""

    def __init__(self, path: SimulatedPath) -> None:
        super().__init__()
        self.path = path

    def flush(self) -> None:
        self.path.disk.write(str(self.path), self.getvalue())

    def fileno(self) -> int:
        return self.path.disk.descriptor(str(self.path))


def missing(path: str) -> FileNotFoundError:
    """Return the error of a path that does not exist."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def void(result: object) -> None:
    """Return nothing."""
