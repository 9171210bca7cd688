"""What one worker does: train the trial that it was handed, and report every epoch."""

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
from search.execution.messages import TrialJob, TrialReport

DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Faults of the disk, which no other trial would escape."""


ReportFn = Callable[[TrialReport], None]
"""Tells the driver where a trial stands."""
TrainFn = Callable[[TrialJob, RunConfig, TrialReport, ReportFn], None]
"""Trains a job's model with these settings; see `train_trial`."""


class OtherNodeError(Exception):
    """This node is not what the driver is: what it computes does not belong into the study."""


class LostProcessError(Exception):
    """A process of a trial that trains in several has died; its others have been ended."""


def run_trial(config: dict[str, Any]) -> None:
    """Ray Tune's trainable: train, and report after every epoch.

    What the training raises is reported as the trial's end, since trying it again would raise it again; only the death
    of the process reaches Ray as an error.
    """
    job = TrialJob(**config)
    send_to_driver(
        TrialReport(job.number, job.attempt)
    )  # says on which node it is, should that die before the first epoch
    run_job(job, send_to_driver)


def send_to_driver(report: TrialReport) -> None:
    """Tell the driver where the trial stands; returns when it has taken note."""
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
    """Train from the folder's newest checkpoint, whose epochs are reported first: the driver may lack them.

    Where the job says so, the trained model is then judged on the test split.
    """
    from fgseg.training.loop import train

    def on_resume(history: list[EpochResult]) -> None:
        report.epochs = history
        send(report)

    def on_epoch(result: EpochResult) -> None:
        report.epochs.append(result)
        send(report)

    configure_process(job)
    history = train(run, job.folder, on_epoch, job.attempt, on_resume)
    if job.test:
        from fgseg.training.test_evaluation import evaluate_on_test_split

        report.test = evaluate_on_test_split(run, job.folder, history, job.attempt)
        send(report)


def configure_process(job: TrialJob) -> None:
    """Give this process its share of the machine."""
    import torch

    from fgseg.devices import hide_gpus, limit_gpu_memory

    torch.set_num_threads(job.threads)
    if job.gpus:
        limit_gpu_memory(job.gpus)
    else:
        hide_gpus()


def run_job(job: TrialJob, send: ReportFn, train: TrainFn = train_trial) -> None:
    """Train a job's model to its end, whatever comes, and send a report for everything that the driver must know.

    Raises:
        LostProcessError: one of several processes has died; that is all that leaves here.
    """
    report = TrialReport(job.number, job.attempt)
    listener = WarningCollector(report.notes)
    logging.getLogger("fgseg").addHandler(listener)
    try:
        if job.processes == 1:  # else each process does that where it is (see group.py)
            check_node(job)
        train_with_oom_retry(job, report, send, train)
    except SupersededError:
        return
    except OtherNodeError as error:
        report.fatal_error = str(error)
        send(report)
    except LostProcessError:
        raise
    except OSError as error:
        everywhere = error.errno in DISK_ERRNOS or isinstance(error, ObjectStoreError)
        report.fatal_error, report.error = (str(error), None) if everywhere else (None, one_line(error, with_type=True))
        send(report)
    except Exception as error:  # whatever it is, it ends this trial and not the search
        report.error = one_line(error, with_type=True)
        send(report)
    finally:
        logging.getLogger("fgseg").removeHandler(listener)


def check_node(job: TrialJob) -> None:
    """Raise OtherNodeError where a node differs: one that joins late has missed the roll call (see roll_call.py).

    On the driver's own machine only the data can: somebody has changed them since the run began.
    """
    if not job.required_environment:
        return
    from fgseg.data import fingerprint, load_splits
    from search.cluster.node_probe import versions

    run = build([Layer(f"trial {job.number}", job.settings)])
    alone = job.required_environment.keys() == {"data"}
    try:
        data = fingerprint(load_splits(run.data, ("train", "val", "test") if job.test else ("train", "val")))
    except ConfigError as error:
        if alone:
            raise  # the trial fails with the reason
        raise OtherNodeError(f"the node {socket.gethostname()} cannot read the data ({error})") from None
    found = versions() | {"data": data}
    wrong = [
        f"{key} {found.get(key)}, not {value}"
        for key, value in job.required_environment.items()
        if value != found.get(key)
    ]
    if wrong and alone:
        raise OtherNodeError(f"the data have changed since the study began ({wrong[0]}); put them back")
    if wrong:
        raise OtherNodeError(f"the node {socket.gethostname()} has {', '.join(wrong)}; take it out of the cluster")


def train_with_oom_retry(job: TrialJob, report: TrialReport, send: ReportFn, train: TrainFn) -> None:
    """Train, and where memory runs out and the job says so, go on with half the micro-batch."""
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
            report.notes.append(f"memory ran out; going on with {smaller}")
        gc.collect()
        torch.cuda.empty_cache()


class WarningCollector(logging.Handler):
    """Collects the warnings of fgseg, which would otherwise stay in a worker's log."""

    def __init__(self, notes: list[str]):
        super().__init__(logging.WARNING)
        self.notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self.notes:
            self.notes.append(record.getMessage())


def halve_micro_batch(run: RunConfig, processes: int = 1) -> dict[str, Any] | None:
    """Settings with half the micro-batch and twice the accumulation, or None where half is no batch for all processes.

    A batch of an odd number of frames loses one of them.
    """
    if run.train.batch_size < 2 or run.train.batch_size // 2 % processes:
        return None
    return {"train.batch_size": run.train.batch_size // 2, "train.accumulation": run.train.accumulation * 2}


def explain_oom(run: RunConfig, error: BaseException, processes: int = 1) -> str:
    """Name the memory that was not enough, and the settings that would fit, in one line."""
    smaller = halve_micro_batch(run, processes)
    where = device_memory() if processes == 1 else f"in one of {processes} processes"
    sets = " ".join(f"--set {key}={value}" for key, value in (smaller or {}).items())
    batch = f"{sets} (the same optimizer steps), or --on-oom halve, or " if smaller else ""
    size = f"smaller frames than data.height={run.data.height} and data.width={run.data.width}"
    return f"out of memory ({where}; {one_line(error, first_line=True)}); {batch}{size} would fit"


def device_memory() -> str:
    """The memory of this process's device, and how much of it the process holds."""
    import torch

    if not torch.cuda.is_available():
        return "on the CPU"
    free, total = (n / 2**30 for n in torch.cuda.mem_get_info())
    held = torch.cuda.max_memory_reserved() / 2**30
    return f"{torch.cuda.get_device_name()}: {total:.1f} GiB, {free:.1f} free, {held:.1f} held by this trial"
