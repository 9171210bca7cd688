"""Faults of the processes that train: killed, frozen, out of memory, diverged; the books are right."""

import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
from real_search import clean, replayed, trials

from search.ledger.ledger import Ledger
from search.ledger.records import State

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_second_driver_is_refused_and_a_worker_that_is_killed_starts_again_until_it_dies_too_often(
    start, tmp_path: Path
):
    storage = tmp_path / "runs"
    limits = ("--max-concurrent", "1", "--max-failures", "1")
    first = start(storage, "--trials", "2", *limits, command=partial(replayed, epoch_s=2.0))
    first.wait_for(r"trial 000  epoch 1/4")
    second = start(storage, "--trials", "2")
    kill(first.workers())
    assert second.finish() == 2
    line = second.output.strip().splitlines()[-1]
    assert (
        f"study small is in use by process {first.process.pid} on host {socket.gethostname()} (last heartbeat" in line
    )
    first.wait_for(r"trial 000  continued \(attempt 2\)[\s\S]*trial 000  epoch [234]/4")
    kill(first.workers())
    assert first.finish() == 0, first.output
    failed, complete = trials(storage)
    assert (failed.state, failed.failures, failed.reason) == (State.FAIL, 2, "its process died (attempt 2)")
    assert (complete.state, complete.failures) == (State.COMPLETE, 0)
    clean(storage)


def kill(workers: list[psutil.Process]) -> None:
    """Kill the processes, of which there must be some."""
    assert workers
    for worker in workers:
        worker.kill()


FROZEN = """
import sys
from fgseg.config.loading import Layer, build, parse_assignments
from fgseg.training.loop import train
run = build([Layer("test", parse_assignments(sys.argv[3:]))])
train(run, sys.argv[1], lambda result: print("epoch", result.epoch, flush=True), int(sys.argv[2]))
"""


def test_frozen_worker_that_comes_back_stops_before_it_writes(environment: dict[str, str], tmp_path: Path, cache: str):
    settings = [
        "data.height=64",
        "data.width=128",
        "data.train=8",
        "data.val=4",
        "train.epochs=40",
        f"data.cache={cache}",
    ]

    def worker(attempt: int) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-c", FROZEN, str(tmp_path / "trial"), str(attempt), *settings]
        pipe = subprocess.PIPE
        return subprocess.Popen(arguments, env=environment, stdout=pipe, stderr=pipe, text=True)

    old = worker(1)
    assert old.stdout is not None
    assert old.stdout.readline() == "epoch 1\n"
    os.kill(old.pid, signal.SIGSTOP)
    new = worker(2)
    assert new.stdout is not None
    assert new.stdout.readline().startswith("epoch ")
    os.kill(new.pid, signal.SIGSTOP)
    before = sorted(p.name for p in (tmp_path / "trial").iterdir())
    os.kill(old.pid, signal.SIGCONT)
    error = old.communicate(timeout=60)[1]
    after = sorted(p.name for p in (tmp_path / "trial").iterdir())
    new.kill()
    new.communicate()
    assert "attempt 1 of this trial was superseded by attempt 2" in error
    assert after == before


def test_loss_that_is_not_finite_fails_the_trial_with_epoch_and_term(start, tmp_path: Path):
    storage = tmp_path / "runs"
    driver = start(storage, "--trials", "1", "--set", "loss.cross_entropy=3e38")
    assert driver.finish() == 1, driver.output
    assert "no trial has finished" in driver.output
    (trial,) = trials(storage)
    assert (trial.state, trial.value, trial.epochs) == (State.FAIL, None, [])
    assert (trial.reason or "").startswith("DivergedError: epoch 1: loss is NaN or infinite")
    clean(storage)


BROKEN = """
import sys, time
from importlib.machinery import PathFinder

class Breaking:
    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name == "fgseg.training.epoch" else None
        if spec:
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), break_training(module))
        return spec

def break_training(module):
    import torch
    train = module.train_one_epoch
    def broken(state, frames, epoch):
        number = state.run.train.seed - 42
        if number == 0 and epoch == 2 and state.run.train.batch_size > 1:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
        if number == 0 and epoch == 3:
            time.sleep(2)  # to be killed in
        if number == 1 and epoch == 3:
            raise ValueError("the third epoch\\nis not to be")
        return train(state, frames, epoch)
    module.train_one_epoch = broken

sys.meta_path.insert(0, Breaking())
"""
"""In trial 0 memory runs out for batches of two, and trial 1 raises."""


def test_memory_that_runs_out_under_a_trial_and_another_that_raises(start, environment: dict[str, str], tmp_path: Path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(BROKEN)
    broken = {"PYTHONPATH": f"{tmp_path / 'broken'}:{environment['PYTHONPATH']}"}
    storage = tmp_path / "runs"
    driver = start(storage, "--trials", "3", "--max-concurrent", "1", "--on-oom", "halve", variables=broken)
    driver.wait_for(r"trial 000  epoch 2/4")
    for worker in driver.workers():
        worker.kill()
    assert driver.finish() == 0, driver.output
    changed, raised, best = trials(storage)
    halved = {"train.batch_size": 1, "train.accumulation": 2}
    assert (changed.state, changed.overrides, changed.attempt) == (State.COMPLETE, halved, 2)
    assert driver.output.count("note: out of memory; continuing with") == 1
    assert (raised.state, raised.reason) == (State.FAIL, "ValueError: the third epoch is not to be")
    assert (best.state, best.value, len(raised.epochs)) == (State.COMPLETE, best.value, 2)
    assert Ledger(f"sqlite:///{storage}/small/study.db", "small").best() == best
    clean(storage)
