"""The simulation finds no violation, finds one that is put in, and calls the hooks of Ray Tune as Ray does."""

import errno
import itertools
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pytest

from fgseg.storage.store import LocalStore
from scripts.chaos import simulated_study
from scripts.chaos.ray_sequences import SCENARIOS, record
from scripts.chaos.replayed_study import STUDY
from scripts.chaos.simulate import run_seed, shorten
from scripts.chaos.simulated_faults import FAULTS, Fault, schedule
from scripts.chaos.simulated_files import Disk
from scripts.chaos.simulated_ray import Cluster, SimulatedTuner
from scripts.chaos.simulated_study import START, Study
from scripts.chaos.virtual_time import Clock, Process, Thread
from search.execution.messages import TrialReport
from search.execution.trial_events import TrialEventHandler

ROOT = Path(__file__).parent.parent.parent
SEQUENCES = json.loads((Path(__file__).parent / "ray_sequences.json").read_text(encoding="utf-8"))
"""Recorded by `python -m scripts.chaos.ray_sequences`."""


def simulate_ray(scenario: str) -> list[str]:
    """Record the calls of the simulated Ray's hooks."""
    clock = Clock(0.0)
    cluster = Cluster(clock, Random(0))
    cluster.join()
    calls: list[str] = []

    def die(scenario: str) -> None:
        if scenario == "node dies":
            cluster.kill_node(cluster.nodes[0])
        clock.process.kill()

    driver = Process(clock, "alpha")
    Thread(lambda: calls.extend(record(scenario, die)), process=driver, clock=clock).start()
    with (
        patch("ray.tune.Tuner", partial(SimulatedTuner, cluster)),
        patch("ray.tune.report", cluster.report),
    ):
        clock.run(1000.0)
    return calls


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_simulated_ray_calls_the_hooks_in_the_order_of_ray(scenario: str):
    assert simulate_ray(scenario) == SEQUENCES[scenario]


@pytest.mark.slow
def test_300_schedules_violate_no_invariant():
    command = [sys.executable, "-m", "scripts.chaos.simulate", "--schedules", "300"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "300 schedules, 0 violations\n"), ended.stderr


def test_schedules_have_3_to_10_faults_and_the_first_300_have_every_kind():
    schedules = [schedule(seed) for seed in range(300)]
    assert all(3 <= len(faults) <= 10 for faults in schedules)
    assert {fault.what for faults in schedules for fault in faults} == set(FAULTS)


def trace(seed: int, tick_s: float) -> list[Any]:
    """Run the schedule of a seed on a machine whose processor clocks advance by `tick_s` seconds with each call."""
    study, ticks = Study(seed), itertools.count(step=tick_s)
    clocks = dict.fromkeys(("thread_time", "process_time", "perf_counter"), ticks.__next__)
    with patch.multiple("time", **clocks):
        study.run(schedule(seed))
    runs = [(run_id, run.info, run.data, run.images, run.deleted) for run_id, run in study.mlflow.runs.items()]
    return [study.clock.now, study.random.getstate(), runs, study.disk.files, study.database.history()]


@pytest.mark.parametrize("seed", (9, 38, 44, 61))
def test_equal_seeds_give_equal_times_files_runs_and_histories_however_fast_the_machine_is(seed: int):
    assert trace(seed, tick_s=0.001) == trace(seed, tick_s=0.7)


VIOLATED = {
    "a lock that could not be released refuses the command for a minute": (
        22133,
        Fault(2.8, "MLflow refuses", seconds=40.0),
        Fault(3.2, "disk is full", seconds=40.0),
        Fault(53.3, "MLflow is slow", seconds=90.0),
        Fault(56.2, "database fails", seconds=90.0),
    ),
    "a worker that came back after the end left half a file": (
        23461,
        Fault(6.1, "driver gets SIGTERM", seconds=2.0, count=3),
        Fault(6.4, "node joins", seconds=90.0, count=9),
        Fault(21.4, "node freezes", seconds=90.0, count=9),
        Fault(42.1, "worker crashes", seconds=10.0, count=2),
    ),
    "a driver that lost the lock after the last trial ended with code 0": (
        26353,
        Fault(5.0, "MLflow is slow", seconds=40.0, count=11),
        Fault(38.7, "driver freezes", seconds=90.0, count=8),
    ),
    "a request of an earlier driver arrived late and stayed in MLflow": (
        27541,
        Fault(12.2, "disk is full", seconds=40.0, count=11),
        Fault(15.8, "MLflow is slow", seconds=10.0, count=7),
        Fault(23.1, "driver freezes", seconds=90.0, count=3),
    ),
    "a worker was killed while it wrote the result of the untrained checkpoint": (1, Fault(2.8, "worker crashes")),
}
"""Shortest schedules that once violated an invariant, with their seeds, by what had happened."""


def restart_unless_it_has_ended(study: Study, restart: Callable[[Study], None] = Study.restart) -> None:
    if study.ended_at == float("inf"):
        restart(study)


def keep_temporary_files_of_the_study(
    store: LocalStore, remove: Callable[[LocalStore], None] = LocalStore.remove_temporary
) -> None:
    if store.folder.name != STUDY:
        remove(store)


REVERTED = (
    ("scripts.chaos.simulated_study.Study.restart", restart_unless_it_has_ended, "0 runs in MLflow instead of one"),
    ("scripts.chaos.simulated_study.Study.wrote_late", lambda study: False, "a temporary file was left behind"),
    ("search.execution.controller.DONE", -1, "the exported model is {}"),
    ("search.tracking.run_writer.StudyRunWriter.refresh_runs", lambda writer: None, "(fgseg.interrupted: true), must"),
    ("fgseg.storage.store.LocalStore.remove_temporary", keep_temporary_files_of_the_study, "untrained.json."),
)
"""What takes each repair back, with a part of the violation that follows, in the order of `VIOLATED`."""


@pytest.mark.parametrize(
    ("schedule", "reverted"), list(zip(VIOLATED.values(), REVERTED, strict=True)), ids=list(VIOLATED)
)
def test_schedule_that_once_violated_an_invariant_violates_it_only_without_the_repair(
    schedule: tuple[int, *tuple[Fault, ...]], reverted: tuple[str, Any, str]
):
    seed, *faults = schedule
    assert Study(seed).run(faults) == []
    name, replacement, violation = reverted
    with patch(name, replacement):
        assert violation in "; ".join(Study(seed).run(faults))


def test_study_that_has_not_ended_in_time_is_a_violation_and_the_simulation_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simulated_study, "END_WITHIN_S", -10.0)  # ends while the disk is full, which then stays full
    assert Study(1).run([Fault(0.0, "disk is full", seconds=20.0)]) == [
        "the study has not ended -10 s after the last fault"
    ]


def test_sleeping_thread_continues_after_everything_that_happens_before():
    clock, order = Clock(0.0), []

    def sleep() -> None:
        for seconds in (1.0, 2.0):
            clock.sleep(seconds)
            order.append(clock.now)

    clock.call_at(2.0, lambda: order.append("event"))
    Thread(sleep, process=Process(clock, "alpha"), clock=clock).start()
    clock.run(10.0)
    assert (order, clock.now) == ([1.0, "event", 3.0], 3.0)


@pytest.mark.parametrize("sync", ("fgseg.storage.store.sync_folder", "scripts.chaos.simulated_files.Disk.sync_content"))
def test_file_or_rename_that_is_not_synced_is_found_by_a_power_cut_after_the_last_trial(sync: str):
    undisturbed = Study(2)
    assert undisturbed.run([]) == []
    (ended,) = undisturbed.database.execute("SELECT MAX(ended) FROM fgsearch_trials").fetchone()
    cut = [Fault(ended - START + 0.05, "power cut")]
    assert Study(2).run(cut) == []
    with patch(sync, lambda *arguments: None):
        assert "trial 2: the best trial has no checkpoint" in Study(2).run(cut)


def test_simulated_disk_raises_the_errors_of_a_disk():
    disk, ended = Disk(clock := Clock(0.0), Random(0)), []

    def use() -> None:
        path = disk.path_class("/file")
        for call in (path.read_bytes, path.lstat, path.unlink, lambda: disk.os.replace(path, "/other")):
            with pytest.raises(FileNotFoundError, match="/file"):
                call()
        path.open("xb").flush()
        with pytest.raises(FileExistsError, match="/file"):
            path.open("xb")
        ended.append(True)

    Thread(use, process=Process(clock, "alpha"), clock=clock).start()
    clock.run(10.0)
    assert ended


def test_old_report_arrives_after_a_newer_one(monkeypatch: pytest.MonkeyPatch):
    arrived: dict[str, list[int]] = defaultdict(list)

    def on_report(events: Any, name: str, report: TrialReport, record: Any = TrialEventHandler.on_report) -> bool:
        arrived[name].append(len(report.epochs))
        return record(events, name, report)

    monkeypatch.setattr(TrialEventHandler, "on_report", on_report)
    assert Study(1).run([Fault(4.0, "old report arrives again", seconds=6.0)]) == []
    assert [epochs for epochs in arrived.values() if epochs != sorted(epochs)] == [[0, 1, 2, 3, 1]]


def test_fault_lasts_although_a_later_one_of_the_same_part_has_ended():
    study, seen = Study(1), []
    for fault in (Fault(0.0, "disk is full", 90.0), Fault(10.0, "disk fails", 10.0), Fault(15.0, "disk is full", 10.0)):
        study.clock.call_at(START + fault.at, partial(fault.begin, study))
    for second in (5, 12, 17, 22, 60, 95):
        study.clock.call_at(START + second, lambda: seen.append(study.disk.fault))
    study.clock.run(START + 100.0)
    assert seen == [errno.ENOSPC, errno.EIO, errno.ENOSPC, errno.ENOSPC, errno.ENOSPC, None]


def test_exception_of_the_simulation_is_a_violation_of_its_seed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(simulated_study, "check_end", lambda plan: 1 / 0)
    seed, (violation,) = run_seed(1)
    assert (seed, violation.splitlines()[-1]) == (1, "ZeroDivisionError: division by zero")


def test_failing_schedule_is_reduced_to_the_faults_that_it_needs():
    faults = [Fault(at, "node joins") for at in range(8)]

    def fails(part: Sequence[Fault]) -> bool:
        return faults[2] in part and faults[6] in part

    assert shorten(faults, fails) == [faults[2], faults[6]]
