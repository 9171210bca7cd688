"""Crash around every durable write of a small study, resume and audit it: python -m scripts.chaos.crash_points

How a crash is made.  A process that is killed leaves what the kernel has of its files, and nothing else: no `finally`
runs, and nothing in memory survives.  So the study (`replayed_study`, run by `one_process`) runs once, in a process of
its own that ends afterwards, and all files are copied before each write.  Each copy is what a crash at that moment
leaves.  Then, for each of these states, a forked process gets the files at their old place, makes the same call,
audits the study and compares it with an undisturbed run.  States with the same files are resumed once.

What counts as a write.  Python's audit hook sees every file that is opened for writing, renamed or deleted and every
folder that is made, by this project or by a library.  SQLAlchemy's events see every transaction of the ledger, MLflow
and Optuna; SQLite itself makes a transaction atomic, so that there is no state in the middle of one.

What is tried, besides before and after: of a file half of its bytes; of a rename that was not synced to the disk (the
folder was not) that it is lost although later transactions of the ledger are not; of a renamed file that was not
synced that it is empty.

Not simulated: the threads of the views (they write in step with the driver here), a worker that outlives its driver,
and registering a model; these are tests with real processes (`scripts.chaos`, tests/product_tests/test_faults.py).
"""

import argparse
import contextlib
import functools
import gc
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from sqlalchemy import Connection, Engine, event

from scripts.chaos.one_process import ENGINES, empty_database, run_in_one_process
from scripts.chaos.replayed_study import STUDY, TRIALS, results, small_plan
from search.audit.trials import audit
from search.ledger.catalog import open_ledger
from search.study.location import find_location
from search.study.plan import Plan
from search.tracking.optuna_studies import open_study

KINDS = (
    (r"\.mlflow\.db.*", "MLflow's database, created"),
    (r"\.optuna\.db.*", "optuna.db, created"),
    (r"mlartifacts/.*", "MLflow's files"),
    (r"optuna-artifacts/?.*", "Optuna's files"),
    (r"\w+/study\.json", "owner file"),
    (r"\w+/write-test", "write test"),
    (r"\w+/trials/\d+/(model|state)-", "checkpoint file"),
    (r"\w+/trials/\d+/checkpoint-", "manifest"),
    (r"\w+/trials/\d+/attempt-", "claim of an attempt"),
    (r"\w+/trials/\d+/\w", "settings and overlays of a trial"),
    (r"\w+/report/.*", "report"),
    (r"\w+/\.?model.*", "exported model"),
)
"""Kinds of files by the beginning of their path in the storage."""
TEMPORARY = (".tmp", ".part", ".new", "-journal", "-wal")
"""Ends of the names of temporary files and folders; a resumed study must not leave any."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
OPTUNA = ("optuna.db", "Optuna's files")
"""Kinds of points after which the study is resumed with the view for optuna-dashboard.  Nothing else depends on it, and
it takes a third of a run: after all other points the study is resumed without it."""
TRANSACTIONS = {
    "study.db": "ledger",
    "mlflow.db": "MLflow",
    "optuna.db": "optuna.db",
    ".optuna.db.new": "optuna.db, created",
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
        self.storage, self.points = storage, list[Point]()
        self.contents: dict[str, bytes] = {}
        self._last: tuple[str, str, str] | None = None
        self._renames: list[Rename] = []
        self._synced: set[str] = set()
        self._statements: dict[int, str] = {}
        self._recording = False
        sys.addaudithook(self._on_file)
        event.listen(Engine, "before_cursor_execute", self._on_statement)
        event.listen(Engine, "commit", self._on_commit)

    def run(self, call: Callable[[], Any]) -> None:
        """Call, and record its writes."""
        with patch("os.fsync", self._fsync):
            self._recording = True
            call()
            self._recording = False
        self._complete(self._snapshot())

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
            kind = next((kind for pattern, kind in KINDS if re.match(pattern, path)), "folder of the study")
            self._record(f"{kind}: {operation}", path, operation)

    def _before_rename(self, old: str | None, new: str | None) -> None:
        if old is None or new is None:
            return
        self._before(new, "rename")
        files = self.points[-1].files
        if not new.startswith(f"{STUDY}/"):
            return  # by MLflow or Optuna
        if old in files and files[old] is not None and old not in self._synced:
            lost = moved(files, old, new) | {new: self._keep(b"")}
            self.points.append(Point(self.points[-1].kind, new, "content lost", lost))
        self._renames.append(Rename(old, new, self.points[-1].kind, below(files, new)))

    def _fsync(self, descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
        fsync(descriptor)
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), self.storage)
        self._synced.add(path)
        self._renames = [rename for rename in self._renames if os.path.dirname(rename.new) != path]

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
        self.points.append(Point(kind, name, "before", files))
        self._last = kind, name, operation

    def _complete(self, files: Files) -> None:
        """Add the states after the last write: `files` are those at the next one."""
        if self._last is None:
            return
        kind, name, operation = self._last
        self.points.append(Point(kind, name, "after", files))
        if operation == "write" and (content := self.contents.get(files.get(name) or "")):
            half = {**files, name: self._keep(content[: len(content) // 2])}
            self.points.append(Point(kind, name, "half of the bytes", half))
        if kind == "ledger: transaction":
            for rename in self._renames:
                lost = moved(files, rename.new, rename.old) | rename.replaced
                self.points.append(Point(rename.kind, rename.new, "rename lost", lost))
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


def outcome(storage: Path, with_optuna: bool) -> dict[str, Any]:
    """Return what every undisturbed or resumed run of the study must leave, by what it is about."""
    location = find_location(storage, STUDY)
    folder = Path(location.folder)
    origin = json.loads((folder / "model" / "origin.json").read_text())
    trials = open_study(storage, STUDY).get_trials(deepcopy=False) if with_optuna else []
    logged = [name.partition("/artifacts/")[2] for name in tree(storage / "mlartifacts") if "uploading" not in name]
    return {
        "trials": results(open_ledger(location)),
        "exported model": [origin["trial"], origin["epoch"], origin["weights"], sorted(os.listdir(folder / "model"))],
        "report": [sorted(os.listdir(folder / "report")), (folder / "report" / "report.md").read_text().split("\n")[2]],
        "optuna.db": sorted((t.user_attrs["trial"], t.state.name, t.value) for t in trials),
        "MLflow's files": sorted(logged),  # MLflow itself leaves one named .artifact.uploading
        "temporary files": [name for name in tree(storage) if name.endswith(TEMPORARY)],
    }


def tree(folder: Path) -> list[str]:
    """Return the paths of everything in a folder, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@functools.cache
def plan_of(storage: Path) -> Plan:
    """Return the plan of the study; reading its settings takes a tenth of a run."""
    return small_plan(storage)


def call_quietly(storage: Path, database: Path, **options: bool) -> str:
    """Run the study, or what is left of it; returns its output if it failed, else nothing."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = run_in_one_process(plan_of(storage), database, **options)
    return f"exit code {code}: {output.getvalue()}" if code else ""


def warm(storage: Path, database: Path) -> None:
    """Run, audit and delete a study, after which no import and no compiled statement is lacking."""
    call_quietly(storage, database)
    call_quietly(storage, database, is_slow=True)
    audit(storage, STUDY)
    outcome(storage, with_optuna=True)
    for engine in ENGINES.values():
        engine.dispose()  # no connection may reach a forked process
    shutil.rmtree(storage)
    storage.mkdir()


def record(storage: Path, database: Path) -> tuple[list[Point], dict[str, bytes], dict[str, Any]]:
    """Run the study undisturbed; returns its crash points, the contents of their files, and its outcome."""
    recorder = Recorder(storage)
    recorder.run(lambda: call_quietly(storage, database) and sys.exit("the undisturbed run failed"))
    return recorder.points, recorder.contents, outcome(storage, with_optuna=True)


def resume(storage: Path, database: Path, expected: dict[str, Any], with_optuna: bool) -> list[str]:
    """Continue a study after a crash; returns one line per fault."""
    failure = call_quietly(storage, database, is_slow=True, with_optuna=with_optuna)
    faults = [failure] if failure else []
    faults += audit(storage, STUDY, trials=TRIALS)
    expected = expected if with_optuna else expected | {"optuna.db": []}
    found = outcome(storage, with_optuna)
    return faults + [f"{key}: {found[key]}, must be {value}" for key, value in expected.items() if found[key] != value]


def restore(storage: Path, files: Files, contents: Mapping[str, bytes]) -> None:
    """Replace everything in the storage by these files."""
    shutil.rmtree(storage, ignore_errors=True)
    storage.mkdir()
    for name, digest in files.items():  # a folder comes before what is in it
        if digest is None:
            (storage / name).mkdir()
        else:
            (storage / name).write_bytes(contents[digest])


class Child:
    """A call in a forked process, which has everything that this process has imported."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._reader)
            with os.fdopen(writer, "wb") as pipe:
                try:
                    pickle.dump(call(*arguments), pipe)
                except BaseException:
                    pickle.dump([traceback.format_exc()], pipe)
            os._exit(0)
        os.close(writer)

    def result(self) -> Any:
        """Wait for the end of the process; returns the result of the call."""
        with os.fdopen(self._reader, "rb") as pipe:
            result = pickle.load(pipe)
        os.waitpid(self._pid, 0)
        return result


def check_share(root: Path, database: Path, share: int, of: int) -> tuple[list[Point], list[tuple[Point, list[str]]]]:
    """Record the crash points in a folder of its own, and resume every `of`-th state, beginning with number `share`.

    Returns:
        All points without their files, and those whose state was found faulty, with the faults.
    """
    storage = root / str(share) / "runs"
    storage.mkdir(parents=True)
    warm(storage, database)
    gc.freeze()
    points, contents, expected = Child(record, storage, database).result()
    by_state: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        by_state.setdefault(tuple(sorted(point.files.items())), []).append(point)
    faulty = []
    for same in list(by_state.values())[share::of]:
        restore(storage, same[0].files, contents)
        with_optuna = any(point.kind.startswith(OPTUNA) for point in same)
        faults = Child(resume, storage, database, expected, with_optuna).result()
        faulty += [(point._replace(files={}), faults) for point in same if faults]
    return [point._replace(files={}) for point in points], faulty


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder in memory where there is one: the states are copies, whose safety on a disk is not the point."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fgsearch-", dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name).resolve()


def main(arguments: list[str] | None = None) -> int:
    """Try every crash point; returns 1 if any failed, else 0."""
    parser = argparse.ArgumentParser("python -m scripts.chaos.crash_points", description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes (default: all cores)")
    options, began = parser.parse_args(arguments), time.monotonic()
    with temporary_folder() as root:
        database = empty_database(root)
        shares = [Child(check_share, root, database, share, options.jobs) for share in range(options.jobs)]
        checked = [share.result() for share in shares]
    points, faulty = checked[0][0], [found for _, faults in checked for found in faults]
    failed = Counter(point.kind for point, _ in faulty)
    for kind, count in sorted(Counter(point.kind for point in points).items()):
        print(f"{count:>5}  {failed[kind]} failed  {kind}")
    for point, faults in faulty:
        print(f"FAILED: {point.moment} {point.name} ({point.kind})", *faults, sep="\n    ")
    print(f"{time.monotonic() - began:.0f} s")
    print(f"{len(points)} crash points, {len(faulty)} failed")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
