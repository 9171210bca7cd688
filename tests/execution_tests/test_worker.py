"""What a worker does with a job, in this process and without Ray."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_checkpoint import save_checkpoint

import fgseg.data
import fgseg.training.loop
import fgseg.training.test_evaluation
from fgseg.checkpoints.untrained_result import UNTRAINED
from fgseg.storage.s3 import ObjectStoreError
from search.cluster.node_probe import versions
from search.execution.messages import TrialJob, TrialReport
from search.execution.worker import LostProcessError, run_job

pytestmark = pytest.mark.slow


@pytest.fixture
def job(tiny, tmp_path: Path) -> TrialJob:
    return TrialJob(3, 1, tiny(train__epochs=2).flat(), str(tmp_path / "trial"), threads=1, gpus=0, on_oom="fail")


def reports(job: TrialJob) -> list[TrialReport]:
    """Everything that a worker sends, as the driver reads it."""
    sent: list[str] = []
    run_job(job, lambda report: sent.append(report.to_json()))
    return [TrialReport.from_json(text) for text in sent]


def broken(*errors: Exception):
    """A training that raises these one after the other, then returns."""
    left = list(errors)

    def train(run, folder, on_epoch, attempt, on_resume):
        if left:
            raise left.pop(0)

    return train


def splits_read(job: TrialJob, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every split that a worker opens for a job, by whichever part of fgseg."""
    read: set[str] = set()
    load = fgseg.data.load_splits

    def note(cfg, names, *arguments, **options):
        read.update(names)
        return load(cfg, names, *arguments, **options)

    for module in ("fgseg.data", "fgseg.training.test_evaluation"):
        monkeypatch.setattr(f"{module}.load_splits", note)
    sent = reports(job)
    assert (sent[-1].test is not None) is job.test
    return read


def test_no_trial_of_a_search_reads_the_test_split(job: TrialJob, monkeypatch: pytest.MonkeyPatch):
    assert splits_read(job, monkeypatch) == {"train", "val"}


def test_repeat_is_judged_on_the_test_split_at_its_end(job: TrialJob, monkeypatch: pytest.MonkeyPatch):
    assert splits_read(replace(job, test=True), monkeypatch) == {"train", "val", "test"}


def test_repeat_that_died_before_it_was_judged_is_judged_alike_by_its_next_start(job: TrialJob):
    reports(job)
    continued, repeated = (reports(replace(job, test=True, attempt=n))[-1].test for n in (2, 3))
    assert continued is not None
    assert replace(continued, attempt=3, blob=repeated.blob) == repeated
    left = {p.name for pattern in ("counts-*", "test-*") for p in Path(job.folder).glob(pattern)}
    assert left == {"counts-000003.safetensors", "test-000003.json"}


def test_share_of_a_gpu_is_taken_before_training(job: TrialJob, monkeypatch: pytest.MonkeyPatch):
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("fgseg.gpu_memory.limit_gpu_memory", shares.append)
    monkeypatch.setattr(fgseg.training.loop, "train", broken())
    reports(replace(job, gpus=0.25))
    reports(job)
    assert shares == [0.25]


def test_every_report_carries_all_epochs_so_far(job: TrialJob):
    assert [[e.epoch for e in r.epochs] for r in reports(job)] == [[1], [1, 2]]


def test_finished_trial_started_again_only_repeats_its_report(job: TrialJob):
    first = reports(job)
    again = reports(replace(job, attempt=2))
    assert [r.epochs for r in again] == [first[-1].epochs]


def test_exception_becomes_the_reason_in_one_line(job: TrialJob, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fgseg.training.loop, "train", broken(RuntimeError("two\nlines")))
    assert [r.error for r in reports(job)] == ["RuntimeError: two lines"]


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
    ],
)
def test_fault_of_a_gpu_ends_the_process_after_its_cause_was_reported(job: TrialJob, error: Exception, monkeypatch):
    sent: list[TrialReport] = []
    monkeypatch.setattr(fgseg.training.loop, "train", broken(error))
    with pytest.raises(LostProcessError):  # makes Ray Tune end the process instead of using it for the next trial
        run_job(job, sent.append)
    assert [(r.process_error, r.error) for r in sent] == [(f"{type(error).__name__}: {error}", None)]


def test_trial_whose_gpu_does_not_initialise_ends_its_process_instead_of_training_on_the_cpu(job: TrialJob):
    sent: list[TrialReport] = []
    with pytest.raises(LostProcessError):
        run_job(replace(job, gpus=1), sent.append)
    assert [(r.epochs, r.error) for r in sent] == [([], None)]
    assert "CUDA does not initialise" in (sent[0].process_error or "")


def test_gpu_that_is_full_does_not_end_the_process(job: TrialJob, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fgseg.training.loop, "train", broken(torch.AcceleratorError("CUDA error: out of memory")))
    (sent,) = reports(job)
    assert sent.process_error is None and (sent.error or "").startswith("MemoryError: out of memory")


def test_diverged_loss_fails_with_epoch_and_term_and_without_a_metric(job: TrialJob, monkeypatch: pytest.MonkeyPatch):
    def diverging(self, logits, *arguments):
        loss = logits.sum() * float("nan")
        return loss, {name: loss.detach() if name == "ssim" else torch.tensor(1.0) for name in self.terms}

    monkeypatch.setattr("fgseg.losses.HybridLoss.forward", diverging)
    sent = reports(job)
    assert [r.epochs for r in sent] == [[]]
    assert sent[0].error is not None
    assert sent[0].error.startswith("DivergedError: epoch 1: ssim is NaN or infinite")


def test_full_disk_halts_the_run_instead_of_failing_the_trial(job: TrialJob, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fgseg.training.loop, "train", broken(OSError(errno.ENOSPC, "No space left on device")))
    sent = reports(job)
    assert (sent[0].error, sent[0].fatal_error) == (None, "[Errno 28] No space left on device")


def test_data_that_disappeared_fail_the_trial_with_the_reason(job: TrialJob):
    settings = job.settings | {"data.reader": "cityscapes", "data.root": "/nowhere"}
    assert "/nowhere" in (reports(replace(job, settings=settings))[0].error or "")


def test_memory_that_runs_out_is_named_with_settings_that_would_fit(job: TrialJob, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fgseg.training.loop, "train", broken(torch.OutOfMemoryError("Tried to allocate 2.00 GiB")))
    error = reports(job)[0].error or ""
    assert "Tried to allocate 2.00 GiB" in error
    assert "--set train.batch_size=1 --set train.accumulation=2" in error
    assert "--on-oom halve" in error


def test_memory_that_runs_out_halves_the_batch_where_asked(job: TrialJob, monkeypatch: pytest.MonkeyPatch):
    real, seen = fgseg.training.loop.train, []

    def hungry(run, folder, on_epoch, attempt, on_resume):
        seen.append((run.train.batch_size, run.train.accumulation))
        if run.train.batch_size > 1:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
        return real(run, folder, on_epoch, attempt, on_resume)

    monkeypatch.setattr(fgseg.training.loop, "train", hungry)
    sent = reports(replace(job, on_oom="halve"))
    assert seen == [(2, 1), (1, 2)]
    assert sent[-1].overrides == {"train.batch_size": 1, "train.accumulation": 2}
    assert [e.epoch for e in sent[-1].epochs] == [1, 2]


def test_frame_that_does_not_fit_alone_fails(job: TrialJob, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fgseg.training.loop, "train", broken(*[torch.OutOfMemoryError("no")] * 3))
    assert "smaller frames than data.height=64" in (reports(replace(job, on_oom="halve"))[0].error or "")


def test_damaged_checkpoint_is_told_to_the_driver(job: TrialJob):
    reports(replace(job, settings=job.settings | {"train.epochs": 2}))
    newest = max(Path(job.folder).glob("model-*"))
    newest.write_bytes(newest.read_bytes()[:-1])
    sent = reports(replace(job, attempt=2))
    assert [e.epoch for e in sent[-1].epochs] == [1, 2]
    assert any(newest.name in note and "using the previous one" in note for note in sent[-1].notes)


def test_superseded_worker_says_nothing_and_writes_nothing(job: TrialJob):
    reports(replace(job, attempt=2, settings=job.settings | {"train.epochs": 1}))
    before = sorted(p.name for p in Path(job.folder).iterdir())
    sent = reports(job)
    assert [r.error for r in sent] == [None] * len(sent)
    assert sorted(p.name for p in Path(job.folder).iterdir()) == before


def test_bucket_that_fails_halts_the_run_and_leaves_the_trial_open(job: TrialJob, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fgseg.training.loop, "train", broken(ObjectStoreError("the object store fails: no answer")))
    (report,) = reports(job)
    assert (report.fatal_error, report.error) == ("the object store fails: no answer", None)


def test_node_that_joined_late_and_differs_stops_the_run_before_it_trains(job: TrialJob):
    (sent,) = reports(replace(job, required_environment={"fgsearch": "0.0.1"}))
    assert sent.fatal_error is not None
    assert "not 0.0.1" in sent.fatal_error
    assert sent.epochs == []


def test_data_that_changed_since_the_run_began_stop_it_before_the_next_trial_trains(job: TrialJob, tiny):
    (sent,) = reports(replace(job, required_environment={"data": "f00d"}))
    assert sent.fatal_error is not None and sent.epochs == []
    assert sent.fatal_error.startswith("the data have changed since the study began (data ")
    data = fgseg.data.fingerprint(fgseg.data.load_splits(tiny().data, ("train", "val")))
    assert len(reports(replace(job, required_environment={"data": data}))[-1].epochs) == 2


def test_node_that_is_like_the_drivers_trains(job: TrialJob, tiny):
    splits = fgseg.data.load_splits(tiny().data, ("train", "val"))
    sent = reports(replace(job, required_environment=versions() | {"data": fgseg.data.fingerprint(splits)}))
    assert (sent[-1].fatal_error, len(sent[-1].epochs)) == (None, 2)


def test_first_trial_of_a_study_evaluates_the_untrained_checkpoint_and_others_do_not(job: TrialJob, tmp_path: Path):
    weights = {"model.name": save_checkpoint(tmp_path / "weights"), "train.epochs": 1}
    job = replace(job, settings=job.settings | weights, study_folder=str(tmp_path / "study"))
    assert len(reports(job)[-1].epochs) == 1
    written = (tmp_path / "study" / UNTRAINED).read_bytes()
    assert reports(replace(job, number=4, folder=str(tmp_path / "other")))[-1].error is None
    assert (tmp_path / "study" / UNTRAINED).read_bytes() == written
