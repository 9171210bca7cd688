"""Crash around every durable write of a small study, resume and audit it: python -m scripts.chaos.crash_points

How a crash is made.  A process that is killed leaves what the kernel has of its files, and nothing else: no `finally`
runs, and nothing in memory survives.  So the study (`replayed_study`, run by `one_process`) runs once, in a process of
its own that ends afterwards, and all files are copied before each write.  Each copy is what a crash at that moment
leaves.  Then, for each of these states, a forked process gets the files at their old place, makes the same call,
audits the study and compares it with an undisturbed run.  States with the same files are resumed once; unfinished
files (*.tmp) count as the same whatever they contain, and a resumed run that reads one fails.
crash_recorder.py says what counts as a write, and what is tried besides before and after it.

Not simulated: the threads of the views (they write in step with the driver here), a worker that outlives its driver,
and registering a model; these are tests with real processes (`scripts.chaos`, tests/product_tests/test_faults.py).
"""

import argparse
import contextlib
import functools
import gc
import io
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fgseg.checkpoints.manifest import digest
from fgseg.checkpoints.trial_files import WEIGHTS
from fgseg.checkpoints.untrained_result import read_untrained
from fgseg.storage.store import open_store
from scripts.arguments import positive
from scripts.chaos.crash_recorder import WRITING, Files, Point, Recorder
from scripts.chaos.one_process import ENGINES, TRIALS, empty_database, run_in_one_process
from scripts.chaos.replayed_study import STUDY, results, small_plan
from search.audit.trials import audit
from search.ledger.catalog import open_ledger
from search.study.location import find_location
from search.study.plan import Plan
from search.tracking.optuna_studies import open_study

BUDGETS = TRIALS, TRIALS + 1
"""Trials of the study after each call."""
UNFINISHED = ".tmp"
"""Ends the name of a file of a store until all its bytes are written."""
RANDOM_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""What MLflow adds to the names of the two files of an image."""
TEMPORARY = (UNFINISHED, ".part", ".new", "-journal", "-wal")
"""Ends of the names of temporary files and folders; a resumed study must not leave any."""
OPTUNA = ("optuna.db", "new optuna.db", "Optuna's files")
"""Kinds of points after which the study is resumed with the view for optuna-dashboard.  Nothing else depends on it, and
it takes a third of a run: after all other points the study is resumed without it."""


def outcome(storage: Path, with_optuna: bool) -> dict[str, Any]:
    """Return what every undisturbed or resumed run of the study must leave, by what it is about."""
    location = find_location(storage, STUDY)
    folder = Path(location.folder)
    origin = json.loads((folder / "model" / "origin.json").read_text())
    trials = open_study(storage, STUDY).get_trials(deepcopy=False) if with_optuna else []
    files = [name.partition("/artifacts/")[2] for name in tree(storage / "mlartifacts") if "uploading" not in name]
    # A crash in `log_image` leaves the first of its two files, with the image's random name.
    logged = {RANDOM_NAME.sub("", name) if name.startswith("images/") else name for name in files}
    untrained = read_untrained(open_store(location.folder))
    return {
        "untrained checkpoint": untrained and untrained.miou,
        "trials": results(open_ledger(location)),
        "exported model": [origin["trial"], origin["epoch"], sorted(os.listdir(folder / "model"))],
        "exported weights": [origin["weights"], digest((folder / "model" / WEIGHTS).read_bytes())],
        "report": [sorted(os.listdir(folder / "report")), (folder / "report" / "report.md").read_text().split("\n")[2]],
        "optuna.db": sorted((t.user_attrs["trial"], t.state.name, t.value) for t in trials),
        "MLflow's files": sorted(logged),  # MLflow itself leaves one named .artifact.uploading
        "temporary files": [name for name in tree(storage) if name.endswith(TEMPORARY)],
    }


def tree(folder: Path) -> list[str]:
    """Return the paths of everything in a folder, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@functools.cache
def plan_of(storage: Path, call: int) -> Plan:
    """Return the plan of a call: the study, then more trials with a changed setting, of which one is the new best.

    Reading its settings takes a tenth of a run.
    """
    changes: dict[str, Any] = {"lr": 3e-4, "accept_changes": True} if call else {}
    return small_plan(storage, BUDGETS[call], pruner="median", **changes)


def call_quietly(storage: Path, database: Path, call: int, **options: bool) -> str:
    """Make a call, or what is left of it; returns its output if it failed, else nothing."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = run_in_one_process(plan_of(storage, call), database, **options)
    return f"exit code {code}: {output.getvalue()}" if code else ""


def warm(storage: Path, database: Path) -> None:
    """Run, audit and delete a study, after which no import and no compiled statement is lacking."""
    call_quietly(storage, database, 0)
    call_quietly(storage, database, 1, is_slow=True)
    audit(storage, STUDY)
    outcome(storage, with_optuna=True)
    for engine in ENGINES.values():
        engine.dispose()  # no connection may reach a forked process
    shutil.rmtree(storage)
    storage.mkdir()


def record(storage: Path, database: Path) -> tuple[list[Point], dict[str, bytes], list[dict[str, Any]]]:
    """Make the calls undisturbed; returns their crash points, the contents of their files, and their outcomes."""
    recorder, outcomes = Recorder(storage), []
    for call in range(len(BUDGETS)):
        if failure := recorder.run(partial(call_quietly, storage, database, call)):
            sys.exit(f"the undisturbed run failed: {failure}")
        outcomes.append(outcome(storage, with_optuna=True))
    return recorder.points, recorder.contents, outcomes


def resume(storage: Path, database: Path, call: int, expected: dict[str, Any], with_optuna: bool) -> list[str]:
    """Make a call again after its crash, in a process of its own; returns one line per fault."""
    gc.disable()  # the process ends soon
    faults: list[str] = []
    sys.addaudithook(functools.partial(report_unfinished_read, faults))
    failure = call_quietly(storage, database, call, is_slow=True, with_optuna=with_optuna)
    faults += [failure] if failure else []
    faults += audit(storage, STUDY, trials=BUDGETS[call])
    expected = expected if with_optuna else expected | {"optuna.db": []}
    found = outcome(storage, with_optuna)
    return faults + [f"{key}: {found[key]}, must be {value}" for key, value in expected.items() if found[key] != value]


def report_unfinished_read(faults: list[str], event: str, arguments: tuple[Any, ...]) -> None:
    """Add a fault if an unfinished file is opened for reading; an audit hook of Python."""
    if event == "open" and str(arguments[0]).endswith(UNFINISHED) and not arguments[2] & WRITING:
        faults.append(f"an unfinished file was read: {arguments[0]}")


def state_of(point: Point) -> tuple[Any, ...]:
    """Return what a resumed run may depend on: the call, the files' paths, and the contents of the finished ones."""
    files = tuple((path, path.endswith(UNFINISHED) or digest) for path, digest in sorted(point.files.items()))
    return point.call, files


def restore(storage: Path, files: Files, contents: Mapping[str, bytes]) -> None:
    """Replace everything in the storage by these files."""
    shutil.rmtree(storage, ignore_errors=True)
    storage.mkdir()
    for name, key in files.items():  # a folder comes before what is in it
        if key is None:
            (storage / name).mkdir()
        else:
            (storage / name).write_bytes(contents[key])


class Child:
    """A call in a forked process, which has everything that this process has imported."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._reader, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._reader)
            with os.fdopen(writer, "wb") as pipe:
                try:
                    answer = call(*arguments), ""
                except BaseException:
                    answer = None, traceback.format_exc()
                pickle.dump(answer, pipe)
            os._exit(0)
        os.close(writer)

    def result(self) -> Any:
        """Wait for the end of the process; returns the result of the call, raises RuntimeError with its traceback."""
        with os.fdopen(self._reader, "rb") as pipe:
            result, error = pickle.load(pipe)
        os.waitpid(self._pid, 0)
        if error:
            raise RuntimeError(error)
        return result


def check_share(
    root: Path, database: Path, share: int, of: int, kinds: str
) -> tuple[list[Point], list[tuple[Point, list[str]]]]:
    """Record the crash points in a folder of its own, and resume every `of`-th state, beginning with number `share`.

    Args:
        kinds: beginning of the kinds of the points.

    Returns:
        All points without their files, and those whose state was found faulty, with the faults.
    """
    storage = root / str(share) / "runs"
    storage.mkdir(parents=True)
    warm(storage, database)
    gc.freeze()
    points, contents, outcomes = Child(record, storage, database).result()
    points = [point for point in points if point.kind.startswith(kinds)]
    by_state: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        by_state.setdefault(state_of(point), []).append(point)
    faulty = []
    for same in list(by_state.values())[share::of]:
        restore(storage, same[0].files, contents)
        with_optuna, call = any(point.kind.startswith(OPTUNA) for point in same), same[0].call
        try:
            faults = Child(resume, storage, database, call, outcomes[call], with_optuna).result()
        except RuntimeError as error:
            faults = [str(error)]
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
    parser.add_argument(
        "--jobs", type=positive, default=os.cpu_count(), metavar="N", help="processes (default: all cores)"
    )
    parser.add_argument("--kinds", default="", metavar="TEXT", help="only points whose kind begins with this text")
    options, began = parser.parse_args(arguments), time.monotonic()
    with temporary_folder() as root:
        database = empty_database(root)
        shares = [
            Child(check_share, root, database, share, options.jobs, options.kinds) for share in range(options.jobs)
        ]
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
