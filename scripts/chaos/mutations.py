"""Test the tests: do they fail where one line of the ledger, its lock, its events or its files is wrong?

`python -m scripts.chaos.mutations [--only NAME ...] [--detectors NAME ...] [--results FILE]` applies the mutations of
mutation_table.py one at a time to a copy of the working tree, and runs the detectors there, the cheapest first, until
one fails.  The exit code is 1 if fewer than 95 % are detected.  A run with the results file of an interrupted one
continues it.  Set TMPDIR to a folder in memory, such as /dev/shm: otherwise most of the time goes into SQLite's files.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from scripts.chaos.mutation_table import (
    CHECKPOINT,
    EVENTS,
    LOCK,
    MANIFEST,
    MUTATIONS,
    RETENTION,
    SOURCE,
    STORE,
    TUNE,
    Mutation,
)

ROOT = Path(__file__).parents[2]
COPIED = ("configs", "fgseg", "scripts", "search", "tests", "pyproject.toml")
"""What the detectors need of the working tree."""
PRELOADED = ["pytest", "torch", "numpy", "scipy.stats", "optuna", "sqlalchemy", "pydantic", "ray.tune"]
"""Libraries that are imported once for all detectors, which takes seconds."""
LIMIT_S, CPU_LIMIT_S = 900, 150
"""Seconds, and seconds of CPU time, after which a detector counts as hanging, which detects the mutation.

No detector takes half of that CPU time by itself, not even on a busy machine."""
UNCHANGED = "no mutation"
"""Name of the row of the results file for the run of all detectors without a mutation."""
REQUIRED = 0.95
"""Fraction of the mutations that must be detected."""


class Detector(NamedTuple):
    """A module that is run in the mutated copy, as by `python -m`, and fails if it notices the mutation."""

    name: str
    module: str
    arguments: tuple[str, ...]
    first_for: tuple[str, ...] = ()
    """Files whose mutations it most often detects; for them it runs before cheaper detectors."""

    def is_available(self) -> bool:
        """Return whether this working tree has the module."""
        return importlib.util.find_spec(self.module) is not None


def tests(name: str, *paths: str, first_for: tuple[str, ...] = ()) -> Detector:
    """Return the detector that runs test modules up to the first failure; without tests that start a server."""
    loaded = "ignore::pytest.PytestAssertRewriteWarning"  # of plugins that a library of PRELOADED imports
    options = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not server and not ray", "-W", loaded)
    return Detector(name, "pytest", (*options, *(f"tests/{path}" for path in paths)), first_for)


DETECTORS = (
    tests("ledger", "ledger_tests/test_ledger.py", "ledger_tests/test_ledger_storage.py"),
    tests(
        "events",
        "execution_tests/test_trial_events.py",
        "execution_tests/test_checkpoint_retention.py",
        "execution_tests/test_ray_tune.py",
        first_for=(EVENTS, RETENTION, TUNE),
    ),
    tests(
        "files",
        "checkpoints_tests/test_checkpoint.py",
        "storage_tests/test_store.py",
        first_for=(MANIFEST, CHECKPOINT, STORE),
    ),
    tests("lock", "ledger_tests/test_lock.py", first_for=(LOCK,)),
    tests("repeats", "ledger_tests/test_repeats.py", first_for=(SOURCE,)),
    tests("sampling", "sampling_tests/test_sampling.py", "sampling_tests/test_replay.py"),
    tests("audit", "audit_tests"),
    Detector("simulation", "scripts.chaos.simulate", ("--schedules", "100", "--processes", "1", "--first")),
    Detector("crash-points", "scripts.chaos.crash_points", ()),
)
"""Cheapest first; a new detector is one more line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 1 if too few mutations are detected, or if a detector fails without a mutation."""
    options = parse(arguments)
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}  # no bytecode of an earlier mutation is used
    detectors = [d for d in DETECTORS if d.name in options.detectors and d.is_available()]
    results = read_results(options.results)
    with copied_tree() as copy:
        if UNCHANGED not in results:
            if (broken := first_failure(copy, detectors)) is not None:
                print(f"{broken} fails without any mutation; the end of its output:\n{tail(copy)}")
                return 1
            add_result(options.results, UNCHANGED, None)
        for mutation in MUTATIONS:
            if mutation.name in options.only and mutation.name not in results:
                results[mutation.name] = try_out(copy, mutation, detectors)
                add_result(options.results, mutation.name, results[mutation.name])
    detected = sum(results[name] is not None for name in options.only)
    print(f"{len(options.only)} mutations, {detected} detected")
    return 0 if detected >= REQUIRED * len(options.only) else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.chaos.mutations", description=__doc__)
    mutations, detectors = [m.name for m in MUTATIONS], [d.name for d in DETECTORS]
    several = {"nargs": "+", "metavar": "NAME"}
    parser.add_argument("--only", choices=mutations, default=mutations, help="mutations to apply", **several)
    parser.add_argument("--detectors", choices=detectors, default=detectors, help="detectors to run", **several)
    parser.add_argument("--results", type=Path, help="file of what was detected, which a later run continues")
    return parser.parse_args(arguments)


def read_results(file: Path | None) -> dict[str, str | None]:
    """Return what detected each mutation of earlier runs, by name; None: nothing did."""
    if file is None or not file.exists():
        return {}
    return dict(json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())


def add_result(file: Path | None, name: str, detector: str | None) -> None:
    """Add what has detected a mutation to the results file."""
    if file is not None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(f"{json.dumps((name, detector))}\n")


@contextmanager
def copied_tree() -> Iterator[Path]:
    """Copy the working tree to a temporary folder, which is deleted at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, folder)
        yield Path(folder)


def try_out(copy: Path, mutation: Mutation, detectors: Sequence[Detector]) -> str | None:
    """Apply a mutation, run the detectors, undo it, and print a row; returns what has detected it."""
    path, began = copy / mutation.file, time.monotonic()
    original = path.read_text(encoding="utf-8")
    path.write_text(mutate(original, mutation), encoding="utf-8")
    detector = first_failure(copy, sorted(detectors, key=lambda one: mutation.file not in one.first_for))
    path.write_text(original, encoding="utf-8")
    verdict = "SURVIVED" if detector is None else f"detected by {detector}"
    print(f"{mutation.name:32}{verdict:26}{time.monotonic() - began:4.0f} s  {mutation.harm}", flush=True)
    return detector


def mutate(text: str, mutation: Mutation) -> str:
    """Return the text of a file with a mutation; raises ValueError unless the old text occurs exactly once."""
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: its old text occurs {text.count(mutation.old)} times in {mutation.file}")
    return text.replace(mutation.old, mutation.new)


def first_failure(copy: Path, detectors: Sequence[Detector]) -> str | None:
    """Return the name of the first detector that fails or hangs in a copy of the tree; None if all pass."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    for detector in detectors:
        process = context.Process(target=run_module, args=(copy, detector.module, detector.arguments))
        process.start()
        process.join(LIMIT_S)
        if process.exitcode in (None, -signal.SIGXCPU):
            process.kill()
            process.join()
            return f"{detector.name}, hangs"
        if process.exitcode != 0:
            return detector.name
    return None


def run_module(copy: Path, module: str, arguments: Sequence[str]) -> None:
    """Run a module of a copy of the tree as `python -m` would; exits this process with the module's exit code."""
    with output_of(copy).open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S + 5))
    os.chdir(copy)
    sys.path[:0] = [str(copy)]
    sys.argv = [module, *arguments]
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]  # those of the working tree, which this function belongs to
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def output_of(copy: Path) -> Path:
    """Return the file with the output of the latest detector."""
    return copy / "output.txt"


def tail(copy: Path) -> str:
    """Return the last lines of the output of the latest detector."""
    return "\n".join(output_of(copy).read_text(encoding="utf-8").splitlines()[-30:])


if __name__ == "__main__":
    sys.exit(main())
