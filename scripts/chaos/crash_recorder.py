"""Record the files of a storage before and after every durable write of a process.

What counts as a write.  Python's audit hook sees every file that is opened for writing, renamed or deleted and every
folder that is made, by this project or by a library.  SQLAlchemy's events see every transaction of the ledger, MLflow
and Optuna; SQLite itself makes a transaction atomic, so that there is no state in the middle of one.

What is tried, besides before and after: of a file half of its bytes; of a rename that was not synced to the disk (the
folder was not) that it is lost although later transactions of the ledger are not; of a renamed file that was not
synced that it is empty.
"""

import contextlib
import hashlib
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from sqlalchemy import Connection, Engine, event

KINDS = (
    (r"\.?mlflow\.db", "new MLflow database"),
    (r"\.?optuna\.db", "new optuna.db"),
    (r"mlartifacts", "MLflow's files"),
    (r"optuna-artifacts", "Optuna's files"),
    (r"\w+/study\.json", "owner file"),
    (r"\w+/write-test", "write test"),
    (r"\w+/untrained\.json", "untrained checkpoint"),
    (r"\w+/trials/\d+/(model|state)-", "checkpoint file"),
    (r"\w+/trials/\d+/checkpoint-", "manifest"),
    (r"\w+/trials/\d+/attempt-", "claim of an attempt"),
    (r"\w+/trials/\d+/\w", "settings and overlays of a trial"),
    (r"\w+/report/", "report"),
    (r"\w+/\.?model", "exported model"),
    (r"\w+(/report|/trials(/\d+)?)?$", "folder of the study"),
)
"""Kinds of files by the beginning of their path in the storage; a path of no kind raises ValueError."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TRANSACTIONS = {
    "study.db": "ledger",
    "mlflow.db": "MLflow",
    "optuna.db": "optuna.db",
    ".optuna.db.new": "new optuna.db",
}
"""Kind of the transactions of each database, by its file."""

Files = Mapping[str, str | None]
"""Digest of the content of each file by path in the storage; None for a folder."""


class Point(NamedTuple):
    """A moment at which the process may be killed."""

    kind: str
    """What was written, and how."""
    name: str
    """Path in the storage, or the statement of a transaction."""
    moment: str
    """before, after, half of the bytes, rename lost, content lost."""
    files: Files
    call: int
    """Number of the recorded call, from 0."""


class Rename(NamedTuple):
    """A rename whose folder has not been synced since."""

    old: str
    new: str
    kind: str
    replaced: Files
    """What was at the new path."""


class Recorder:
    """Records the files of a storage before and after each write of this process; cannot be removed again."""

    def __init__(self, storage: Path) -> None:
        self.storage, self.points, self.calls = storage, list[Point](), 0
        self.contents: dict[str, bytes] = {}
        self._last: tuple[str, str, str] | None = None
        self._renames: list[Rename] = []
        self._synced: set[str] = set()
        self._statements: dict[int, str] = {}
        self._recording = False
        sys.addaudithook(self._on_file)
        event.listen(Engine, "before_cursor_execute", self._on_statement)
        event.listen(Engine, "commit", self._on_commit)

    def run(self, call: Callable[[], Any]) -> Any:
        """Call, and record its writes; returns its result.  May be repeated."""
        with patch("os.fsync", self._fsync):
            self._recording = True
            result = call()
            self._recording = False
        self._complete(self._snapshot())
        self._recording = False
        self.calls += 1
        return result

    def _on_file(self, name: str, arguments: tuple[Any, ...]) -> None:
        if not self._recording:
            return
        if name == "open" and isinstance(arguments[0], str | bytes | os.PathLike) and arguments[2] & WRITING:
            self._before(self._path(arguments[0]), "write")
        elif name == "os.rename":
            self._before_rename(self._path(arguments[0], arguments[2]), self._path(arguments[1], arguments[3]))
        elif name in ("os.remove", "os.rmdir"):
            self._before(self._path(arguments[0], arguments[1]), "delete")
        elif name == "os.mkdir" and not os.path.exists(arguments[0]):
            self._before(self._path(arguments[0], arguments[2]), "create folder")

    def _path(self, path: Any, folder: int = -1) -> str | None:
        """Return a path in the storage, or None for one outside."""
        where = Path(f"/proc/self/fd/{folder}").resolve() if folder >= 0 else Path.cwd()
        absolute = where / os.fsdecode(path)
        return str(absolute.relative_to(self.storage)) if absolute.is_relative_to(self.storage) else None

    def _before(self, path: str | None, operation: str) -> None:
        if path is not None and not path.endswith("-journal"):
            self._record(f"{kind_of(path)}: {operation}", path, operation)

    def _before_rename(self, old: str | None, new: str | None) -> None:
        if old is None or new is None:
            return
        self._before(new, "rename")
        files = self.points[-1].files
        if new.startswith(("mlartifacts/", "optuna-artifacts/")):
            return  # by MLflow or Optuna
        is_database = new in TRANSACTIONS  # which SQLite itself has synced
        if old in files and files[old] is not None and old not in self._synced and not is_database:
            lost = moved(files, old, new) | {new: self._keep(b"")}
            self._add(self.points[-1].kind, new, "content lost", lost)
        self._renames.append(Rename(old, new, self.points[-1].kind, below(files, new)))

    def _fsync(self, descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
        fsync(descriptor)
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), self.storage)
        self._synced.add(path)
        self._renames = [rename for rename in self._renames if (os.path.dirname(rename.new) or ".") != path]

    def _on_statement(self, connection: Connection, cursor: Any, statement: str, *others: Any) -> None:
        word = statement.split(None, 1)[0]
        if word in ("INSERT", "UPDATE", "DELETE"):
            self._statements[id(connection)] = " ".join(statement.split())
        elif word in ("CREATE", "ALTER", "DROP"):  # the sqlite3 module commits these at once
            self._transaction(connection, " ".join(statement.split()))

    def _on_commit(self, connection: Connection) -> None:
        statement = self._statements.pop(id(connection), None)
        if statement is not None:
            self._transaction(connection, statement)

    def _transaction(self, connection: Connection, statement: str) -> None:
        kind = TRANSACTIONS.get(Path(connection.engine.url.database or "").name)
        if self._recording and kind:
            kind = "lock" if "SET lock_host" in statement else kind
            self._record(f"{kind}: transaction", statement[:60], "transaction")

    def _record(self, kind: str, name: str, operation: str) -> None:
        files = self._snapshot()
        self._complete(files)
        self._add(kind, name, "before", files)
        self._last = kind, name, operation

    def _add(self, kind: str, name: str, moment: str, files: Files) -> None:
        self.points.append(Point(kind, name, moment, files, self.calls))

    def _complete(self, files: Files) -> None:
        """Add the states after the last write: `files` are those at the next one."""
        if self._last is None:
            return
        kind, name, operation = self._last
        self._add(kind, name, "after", files)
        if operation == "write" and (content := self.contents.get(files.get(name) or "")):
            half = {**files, name: self._keep(content[: len(content) // 2])}
            self._add(kind, name, "half of the bytes", half)
        if kind == "ledger: transaction":
            for rename in self._renames:
                lost = moved(files, rename.new, rename.old) | rename.replaced
                self._add(rename.kind, rename.new, "rename lost", lost)
        self._last = None

    def _snapshot(self) -> Files:
        """Copy all files; of a database what is committed."""
        self._recording, files = False, {}
        for path in sorted(self.storage.rglob("*")):
            name = str(path.relative_to(self.storage))
            if path.is_dir():
                files[name] = None
            elif not name.endswith("-journal"):
                files[name] = self._keep(committed(path) if path.name in TRANSACTIONS else path.read_bytes())
        self._recording = True
        return files

    def _keep(self, content: bytes) -> str:
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        self.contents[digest] = content
        return digest


def kind_of(path: str) -> str:
    """Return the kind of a file or folder; raises ValueError for a path that KINDS lacks."""
    for pattern, kind in KINDS:
        if re.match(pattern, path):
            return kind
    raise ValueError(f"{path} is of no kind; add it to KINDS and to the table in search/README.md")


def committed(database: Path) -> bytes:
    """Return the committed content of an SQLite file, which this process may be writing."""
    if database.stat().st_size == 0:
        return b""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.serialize()


def below(files: Files, path: str) -> dict[str, str | None]:
    """Return a file, or a folder with everything in it."""
    return {name: content for name, content in files.items() if name == path or name.startswith(f"{path}/")}


def moved(files: Files, old: str, new: str) -> dict[str, str | None]:
    """Return the files after a rename, which replaces what was at the new path."""
    kept = {name: content for name, content in files.items() if name not in below(files, new)}
    return {new + name.removeprefix(old) if name in below(files, old) else name: c for name, c in kept.items()}
