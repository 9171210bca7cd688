"""What becomes of a trial when one of its processes fails, without starting any."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ray.train import WorkerGroupError

from fgseg.results import SupersededError
from search.execution.messages import TrialJob, TrialReport
from search.execution.report_channel import ReportChannel
from search.execution.worker import LostProcessError, run_job
from search.execution.worker_group import (
    RaisedError,
    picklable_error,
    root_error,
    trainer_without_cleaner_of_ray_2,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def job(tiny, tmp_path: Path) -> TrialJob:
    settings = tiny(train__batch_size=8).flat()
    return TrialJob(3, 1, settings, str(tmp_path / "trial"), threads=1, gpus=0, on_oom="fail", processes=4, cpus=4)


def run(job: TrialJob, *errors: Exception) -> list[TrialReport]:
    """What a trial sends whose processes raise these errors, one at each start, and then nothing."""
    left, sent = list(errors), list[TrialReport]()

    def train(job, run, report, send):
        sent.append(TrialReport.from_json(report.to_json()))
        if left:
            raise left.pop(0)

    run_job(job, lambda report: sent.append(TrialReport.from_json(report.to_json())), train)
    return sent


def failed(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("failed", dict(enumerate(failures)))


def test_lost_process_is_no_failure_of_the_trial_itself(job: TrialJob):
    with pytest.raises(LostProcessError):
        run(job, LostProcessError("rank 1"))


def test_what_one_process_raised_is_the_reason():
    assert str(root_error(failed(RaisedError(ValueError("rank 0"))))) == "rank 0"
    assert isinstance(root_error(failed(RaisedError(SupersededError("old")))), SupersededError)


def test_death_of_one_process_counts_more_than_what_the_others_raise():
    closed = RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:1234")
    assert isinstance(root_error(failed(RaisedError(closed))), LostProcessError)
    assert isinstance(root_error(failed(RaisedError(ValueError("x")), RuntimeError("actor died"))), LostProcessError)


def test_memory_that_runs_out_in_one_process_halves_the_batch_of_all_as_long_as_it_divides(job: TrialJob):
    sent = run(replace(job, on_oom="halve"), torch.OutOfMemoryError("no"), torch.OutOfMemoryError("no"))
    assert sent[1].overrides == {"train.batch_size": 4, "train.accumulation": 2}
    assert (sent[2].error or "").startswith("MemoryError: out of memory (in one of 4 processes; no); smaller frames")


class Stubborn(Exception):
    def __init__(self, first: str, second: str):
        super().__init__(first)


def test_exception_that_cannot_travel_goes_as_its_description():
    assert isinstance(picklable_error(OSError(28, "full")), OSError)
    assert str(picklable_error(Stubborn("a", "b"))) == "Stubborn: a"


def test_report_is_answered_once_the_next_one_is_asked_for():
    async def talk() -> list[bool]:
        box = ReportChannel()
        sending = asyncio.create_task(box.send("first"))
        assert await box.receive() == "first"
        await asyncio.sleep(0)
        answered = [sending.done()]
        await box.close()
        assert await box.receive() is None
        await sending
        return [*answered, sending.done()]

    assert asyncio.run(talk()) == [False, True]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data, about Ray's own defaults
def test_ray_trains_trainer_has_a_cleaner_of_its_own_unless_it_is_left_out():
    """Fails where Ray starts none by default: then `trainer_without_cleaner_of_ray_2` is not needed any more."""
    from ray.train.torch import TorchTrainer

    ours = trainer_without_cleaner_of_ray_2()
    theirs, left = (
        {type(callback).__name__ for callback in trainer(lambda: None)._create_default_callbacks()}
        for trainer in (TorchTrainer, ours)
    )
    assert theirs - left == {"PlacementGroupCleanerCallback"}


def test_process_that_only_forwards_reports_does_not_import_what_trains():
    """Such as transformers, which takes seconds of every start."""
    code = (
        "import sys\n"
        "from search.execution.messages import TrialJob\n"
        "from search.execution.worker import run_job\n"
        "job = TrialJob(0, 1, {}, 'nowhere', threads=1, gpus=0, on_oom='fail', processes=2, cpus=2)\n"
        "run_job(job, print, lambda job, run, report, send: print('forwarded'))\n"
        "print([name for name in ('transformers', 'fgseg.training.epoch') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["forwarded", "[]"]
