"""Train one trial in a Ray worker, and report every epoch to the driver."""

import errno
import gc
import logging
import socket
from collections.abc import Callable
from typing import Any

from ray import get_runtime_context, tune

from fgseg.config.errors import ConfigError, one_line
from fgseg.config.loading import Layer, build
from fgseg.config.settings import RunConfig
from fgseg.results import EpochResult, SupersededError
from fgseg.storage.s3 import ObjectStoreError
from fgseg.training.imports import import_training
from search.execution.messages import TrialJob, TrialReport

DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Errors of a disk that is full, over its quota or read-only: they stop the run, as every trial would fail."""

ReportFn = Callable[[TrialReport], None]
"""Sends a report to the driver; returns once the driver has processed it."""
TrainFn = Callable[[TrialJob, RunConfig, TrialReport, ReportFn], None]
"""Trains a job's model, see `train_trial`."""


class NodeMismatchError(Exception):
    """This node has other library versions or other data than the driver."""


class LostProcessError(Exception):
    """A process of a trial has died or cannot use its GPU any more; the trial resumes in new processes."""


def run_trial(config: dict[str, Any]) -> None:
    """Run as Ray Tune's trainable: train a job, and report after every epoch.

    An exception of the training is reported as the end of the trial, since a retry would raise it again.  Ray sees an
    error only if the process dies or has to end: Ray Tune reuses the process of a trial that ended without one.
    """
    job = TrialJob(**config)
    send_to_driver(TrialReport(job.number, job.attempt))  # names the node, which may die before the first epoch
    run_job(job, send_to_driver)


def send_to_driver(report: TrialReport) -> None:
    """Send a report to the driver through Ray Tune; returns once the driver has processed it."""
    nodes = [get_runtime_context().get_node_id(), *([report.node] if report.node else [])]
    tune.report(
        {
            "epoch": len(report.epochs),
            "report": report.to_json(),
            "nodes": nodes,
            "placement_group_id": report.placement_group_id,
        }
    )


def train_trial(job: TrialJob, run: RunConfig, report: TrialReport, send: ReportFn) -> None:
    """Train from the newest checkpoint in the job's folder, and evaluate the model on the test split if `job.test`.

    The first trial of a study evaluates the untrained checkpoint before, if the model starts from one with the classes.

    The epochs of the checkpoint are reported first, since the driver may lack them.
    """
    from fgseg.training.loop import train
    from fgseg.training.untrained import evaluate_untrained_once

    def on_resume(history: list[EpochResult]) -> None:
        report.epochs = history
        send(report)

    def on_epoch(result: EpochResult) -> None:
        report.epochs.append(result)
        send(report)

    configure_process(job)
    if job.study_folder is not None:
        evaluate_untrained_once(run, job.study_folder, "test" if job.test else "val")
    history = train(run, job.folder, on_epoch, job.attempt, on_resume)
    if job.test:
        from fgseg.training.test_evaluation import evaluate_on_test_split

        report.test = evaluate_on_test_split(run, job.folder, history, job.attempt)
        send(report)


def configure_process(job: TrialJob) -> None:
    """Set the CPU threads and the GPU memory limit of this process, or hide all GPUs if the job has none.

    Raises:
        GpuUnavailableError: the job has a GPU and CUDA does not initialise in this process.
    """
    import torch

    from fgseg.devices import check_cuda, hide_gpus
    from fgseg.gpu_memory import limit_gpu_memory

    torch.set_num_threads(job.threads)
    if job.gpus:
        check_cuda()  # Accelerate would train on the CPU instead
        limit_gpu_memory(job.gpus)
    else:
        hide_gpus()


def run_job(job: TrialJob, send: ReportFn, train: TrainFn = train_trial) -> None:
    """Train a job's model, and report errors of the training to the driver instead of raising them.

    A SupersededError ends the job without a report.

    Raises:
        LostProcessError: one of several processes has died, or this process has to end after a fault of its GPU, which
            was reported as the cause.
    """
    report = TrialReport(job.number, job.attempt)
    collector = WarningCollector(report.notes)
    logging.getLogger("fgseg").addHandler(collector)
    try:
        if job.processes == 1:  # else each process checks its own node, see worker_group.py
            check_node(job)
        train_with_oom_retry(job, report, send, train)
    except SupersededError:
        return
    except NodeMismatchError as error:
        report.fatal_error = str(error)
        send(report)
    except LostProcessError:
        raise
    except OSError as error:
        is_fatal = error.errno in DISK_ERRNOS or isinstance(error, ObjectStoreError)
        report.fatal_error, report.error = (str(error), None) if is_fatal else (None, one_line(error, with_type=True))
        send(report)
    except Exception as error:  # any other exception fails this trial, and the search continues
        from fgseg.devices import is_gpu_fault

        text = one_line(error, with_type=True)
        if is_gpu_fault(error):  # the next trial of this process would fail as well
            report.process_error = text
            send(report)
            raise LostProcessError(text) from None
        report.error = text
        send(report)
    finally:
        logging.getLogger("fgseg").removeHandler(collector)


def check_node(job: TrialJob) -> None:
    """Raise NodeMismatchError if this node's library versions or data differ from the driver's.

    Needed since a node may join the cluster after `ClusterCheck.check_nodes`.  On the driver's own machine only the
    data are checked: they may have changed since the run began.
    """
    if not job.required_environment:
        return
    from fgseg.data import fingerprint, load_splits
    from search.cluster.node_probe import versions

    run = build([Layer(f"trial {job.number}", job.settings)])
    data_only = job.required_environment.keys() == {"data"}
    try:
        data = fingerprint(load_splits(run.data, ("train", "val", "test") if job.test else ("train", "val")))
    except ConfigError as error:
        if data_only:
            raise  # fails this trial only
        raise NodeMismatchError(f"the node {socket.gethostname()} cannot read the data ({error})") from None
    actual = versions() | {"data": data}
    mismatches = [
        f"{key} {actual.get(key)}, not {value}"
        for key, value in job.required_environment.items()
        if value != actual.get(key)
    ]
    if mismatches and data_only:
        raise NodeMismatchError(f"the data have changed since the study began ({mismatches[0]}); restore them")
    if mismatches:
        raise NodeMismatchError(
            f"the node {socket.gethostname()} has {', '.join(mismatches)}; remove it from the cluster"
        )


def train_with_oom_retry(job: TrialJob, report: TrialReport, send: ReportFn, train: TrainFn) -> None:
    """Train a job; after an out-of-memory error continue with half the micro-batch if `job.on_oom` is `halve`.

    Raises MemoryError if the micro-batch may not or cannot be halved.
    """
    if job.processes == 1:  # else other processes train, see worker_group.py
        import_training()
    import torch

    from fgseg.devices import is_out_of_memory

    while True:
        run = build([Layer(f"trial {job.number}", job.settings | report.overrides)])
        try:
            return train(job, run, report, send)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            smaller = halve_micro_batch(run, job.processes) if job.on_oom == "halve" else None
            if smaller is None:
                raise MemoryError(explain_oom(run, error, job.processes)) from None
            report.overrides = smaller
            report.notes.append(f"out of memory; continuing with {smaller}")
        gc.collect()
        torch.cuda.empty_cache()


class WarningCollector(logging.Handler):
    """Appends each distinct warning of a logger to `notes`, which reports carry to the driver."""

    def __init__(self, notes: list[str]):
        super().__init__(logging.WARNING)
        self.notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self.notes:
            self.notes.append(record.getMessage())


def halve_micro_batch(run: RunConfig, processes: int = 1) -> dict[str, Any] | None:
    """Return the settings for half the micro-batch and twice the accumulation, by dotted name.

    The optimizer's batch shrinks by `train.accumulation` frames if the micro-batch is odd.

    Returns:
        None if half the micro-batch cannot be divided among the processes.
    """
    if run.train.batch_size < 2 or run.train.batch_size // 2 % processes:
        return None
    return {"train.batch_size": run.train.batch_size // 2, "train.accumulation": run.train.accumulation * 2}


def explain_oom(run: RunConfig, error: BaseException, processes: int = 1) -> str:
    """Describe an out-of-memory error in one line: the device's memory, and settings that need less."""
    smaller = halve_micro_batch(run, processes)
    where = device_memory() if processes == 1 else f"in one of {processes} processes"
    sets = " ".join(f"--set {key}={value}" for key, value in (smaller or {}).items())
    batch = f"{sets} (the same optimizer steps), or --on-oom halve, or " if smaller else ""
    size = f"smaller frames than data.height={run.data.height} and data.width={run.data.width}"
    return f"out of memory ({where}; {one_line(error, first_line=True)}); {batch}{size} would fit"


def device_memory() -> str:
    """Describe the memory of this process's device, and the peak that the process has reserved, in GiB."""
    import torch

    if not torch.cuda.is_available():
        return "on the CPU"
    free, total = (n / 2**30 for n in torch.cuda.mem_get_info())
    reserved = torch.cuda.max_memory_reserved() / 2**30
    return f"{torch.cuda.get_device_name()}: {total:.1f} GiB, {free:.1f} free, {reserved:.1f} reserved by this trial"
