"""Train one model in several processes on one node, which Ray Train starts.

The trainable that Ray Tune runs does not train: it forwards the reports of rank 0 to the driver.
"""

import logging
import os
import pickle
import tempfile
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.tune.trainable import wrap_function

from fgseg.config import loading, settings
from fgseg.config.errors import one_line
from search.execution.messages import TrialJob, TrialReport
from search.execution.report_channel import ReportChannel
from search.execution.worker import (
    LostProcessError,
    ReportFn,
    WarningCollector,
    check_node,
    configure_process,
    run_job,
    send_to_driver,
    train_trial,
)

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

START_TRIES = 600
"""Attempts of Ray Train to start the processes, of one minute each; then the trial's process counts as dead.  High
since other searches may occupy the cluster."""
STOP_S = 20.0
"""Seconds to wait for the processes to exit at the end of a trial; then they end with the trial's own process."""
RAY_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # seconds until the death of a process is noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # saves a process; the ledger reschedules the trial of a dead node
}
CONNECTION_ERRORS = ("Connection closed by peer", "Connection reset by peer")
"""Texts in the errors that gloo raises in one process after another one has died."""

no_active_group = threading.Event()
"""Set while no `train_in_worker_group` runs in this process."""
no_active_group.set()


def run_group_trial(config: dict[str, Any]) -> None:
    """Run as Ray Tune's trainable: train a job in several processes; see `search.execution.worker.run_trial`."""
    run_job(TrialJob(**config), send_to_driver, train_in_worker_group)


class GroupTrial(wrap_function(run_group_trial)):  # type: ignore[misc]
    """Ray Tune's trainable for jobs of several processes."""

    def cleanup(self) -> None:
        """End the trial, and wait for its processes, since the exit of this process kills Ray Train's controller."""
        super().cleanup()
        no_active_group.wait(STOP_S)


def train_in_worker_group(job: TrialJob, run: settings.RunConfig, report: TrialReport, send: ReportFn) -> None:
    """Train a job's model in several processes; a TrainFn, see `search.execution.worker.train_trial`.

    Args:
        job: the job.
        run: not used; each process builds its settings from the job.
        report: updated with each report of rank 0.
        send: called with `report` after each update, from this thread.

    Raises:
        LostProcessError: a process has died.
        Exception: the exception that the training raised in a process.
    """
    no_active_group.clear()
    channel = ray.remote(num_cpus=0)(ReportChannel).remote()
    end: Future[None] = Future()
    thread = threading.Thread(target=train_group, args=(job, report.to_json(), channel, end), daemon=True)
    thread.start()
    try:
        while (text := ray.get(channel.receive.remote())) is not None:
            latest = TrialReport.from_json(text)
            report.epochs, report.test = latest.epochs, latest.test
            report.node, report.placement_group_id = latest.node, latest.placement_group_id
            report.notes[:] = latest.notes
            send(report)
        end.result()
    except WorkerGroupError as error:
        raise root_error(error) from None
    except (TrainingFailedError, RayError) as error:
        raise LostProcessError(one_line(error, with_type=True)) from None
    finally:
        ray.kill(channel)  # raises in a process that waits in `ReportChannel.send`
        thread.join(STOP_S)
        no_active_group.set()


def trainer_without_cleaner_of_ray_2() -> "type[TorchTrainer]":
    """Return Ray Train's trainer without its cleaner, an extra process on the head node.

    The driver removes placement groups itself.  Ray 2.60 has no option to leave the cleaner out.
    """
    from ray.train.torch import TorchTrainer  # here, as it imports torch, which the driver does not need

    class Trainer(TorchTrainer):
        """Leaves one of the default callbacks out."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    return Trainer


def train_group(job: TrialJob, report: str, channel: Any, end: "Future[None]") -> None:
    """Start the processes, wait for all to exit, set the result or exception of `end`, and close the channel.

    Blocks; runs in a thread of its own.
    """
    per_worker = {"CPU": job.cpus / job.processes} | ({"GPU": 1} if job.gpus else {})
    runtime_env = {} if job.gpus else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    os.environ.update({key: value for key, value in RAY_TRAIN_ENVIRONMENT.items() if key not in os.environ})
    try:
        with tempfile.TemporaryDirectory(prefix="fgsearch-") as scratch:
            trainer_without_cleaner_of_ray_2()(
                worker_main,
                train_loop_config={"job": asdict(job), "report": report, "channel": channel},
                scaling_config=ScalingConfig(
                    num_workers=job.processes,
                    use_gpu=job.gpus > 0,
                    resources_per_worker=per_worker,
                    placement_strategy="STRICT_PACK",
                ),
                run_config=RunConfig(
                    name="trial",
                    storage_path=scratch,
                    failure_config=FailureConfig(controller_failure_limit=START_TRIES, max_preemption_failures=0),
                    worker_runtime_env=runtime_env,
                ),
            ).fit()
        end.set_result(None)
    except Exception as error:  # raised by `end.result()` in the thread that waits
        end.set_exception(error)
    finally:
        channel.close.remote()


class RaisedError(Exception):
    """Wraps an exception of the training, to distinguish it from the death of a process."""


def worker_main(config: dict[str, Any]) -> None:
    """Run as Ray Train's training function in each process; raises every exception as RaisedError."""
    try:
        worker_train(TrialJob(**config["job"]), TrialReport.from_json(config["report"]), config["channel"])
    except Exception as error:
        raise RaisedError(picklable_error(error)) from error


def worker_train(job: TrialJob, report: TrialReport, channel: Any) -> None:
    """Train this process's part of every batch; rank 0 also sends the reports."""
    from torch.distributed import get_rank

    run = loading.build([loading.Layer(f"trial {job.number}", job.settings | report.overrides)])
    check_node(job)
    if get_rank() > 0:
        from fgseg.training.loop import train

        configure_process(job)
        train(run, job.folder)
        return
    context = ray.get_runtime_context()
    report.node, report.placement_group_id = context.get_node_id(), context.get_placement_group_id()
    logging.getLogger("fgseg").addHandler(WarningCollector(report.notes))

    def send(latest: TrialReport) -> None:
        ray.get(channel.send.remote(latest.to_json()))

    send(report)  # names node and placement group: the process may die before the first epoch
    train_trial(job, run, report, send)


def picklable_error(error: Exception) -> Exception:
    """Return the exception, or a RuntimeError with its type and message if it cannot be pickled and restored."""
    with suppress(Exception):  # methods of the exception's class may raise anything
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    return RuntimeError(one_line(error, with_type=True))


def root_error(error: WorkerGroupError) -> Exception:
    """Return the exception that the training raised in a process, or a LostProcessError if a process has died."""
    failures = list(error.worker_failures.values())
    raised = [failure.args[0] for failure in failures if isinstance(failure, RaisedError)]
    if len(raised) < len(failures) or any(is_connection_error(cause) for cause in raised):
        return LostProcessError(one_line(error, with_type=True))
    return raised[0]


def is_connection_error(error: Exception) -> bool:
    """Return whether an exception means that another process has died."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or any(text in str(error) for text in CONNECTION_ERRORS)
