"""A trial in several processes: Ray Train starts them on one node, and they train one model together.

The trial's own function, which Ray Tune runs, only passes on what the first process reports.
"""

import asyncio
import logging
import os
import pickle
import tempfile
import threading
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.tune.trainable import wrap_function

from fgseg.config import loading, settings
from fgseg.config.errors import one_line
from search.execution.messages import TrialJob, TrialReport
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

START_TRIES = 600
"""How often Ray Train tries to start the processes, each time for a minute: other searches may have the cluster."""
STOP_S = 20.0
"""How long the end of a trial waits for that of its processes; what is left then ends with the trial's own process."""
RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end of a process shows
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one process less: the ledger hands a dead trial out again
}
BROKEN = ("Connection closed by peer", "Connection reset by peer")
"""What gloo says in a process when another one has died."""


no_active_group = threading.Event()
"""Set while this process has no group of processes."""
no_active_group.set()


def run_group_trial(config: dict[str, Any]) -> None:
    """Train a job in several processes; see `search.execution.worker.run_trial`."""
    run_job(TrialJob(**config), send_to_driver, train_in_worker_group)


class GroupTrial(wrap_function(run_group_trial)):  # type: ignore[misc]
    """Ray Tune's trainable for jobs of several processes."""

    def cleanup(self) -> None:
        """End the trial, and wait for its processes: Ray Train's controller would be killed with this one."""
        super().cleanup()
        no_active_group.wait(STOP_S)


def train_in_worker_group(job: TrialJob, run: settings.RunConfig, report: TrialReport, send: ReportFn) -> None:
    """`search.execution.worker.learn`, done by several processes; `run` is built in each of them again.

    Raises:
        LostProcessError: one of them has died.
        Exception: what the training raised in one of them.
    """
    no_active_group.clear()
    channel = ray.remote(num_cpus=0)(ReportChannel).remote()
    end: Future[None] = Future()
    thread = threading.Thread(target=train_group, args=(job, report.to_json(), channel, end), daemon=True)
    thread.start()
    try:
        while (letter := ray.get(channel.receive.remote())) is not None:
            latest = TrialReport.from_json(letter)
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
        ray.kill(channel)  # a process that waits for an answer stops
        thread.join(STOP_S)
        no_active_group.set()


def train_group(job: TrialJob, report: str, channel: Any, end: "Future[None]") -> None:
    """Start the processes and wait for their end, which `end` then holds; then close the mailbox."""
    from ray.train.torch import TorchTrainer  # imports torch, which the driver does without

    class Trainer(TorchTrainer):
        """Without a process on the head that gives back what the others have reserved: the driver does that."""

        def _create_default_callbacks(self) -> list[Any]:
            found = super()._create_default_callbacks()
            return [callback for callback in found if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    each = {"CPU": job.cpus / job.processes} | ({"GPU": 1} if job.gpus else {})
    hidden = {} if job.gpus else {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    os.environ.update({key: value for key, value in RAY_TRAIN.items() if key not in os.environ})
    try:
        with tempfile.TemporaryDirectory(prefix="fgsearch-") as scratch:
            Trainer(
                worker_main,
                train_loop_config={"job": asdict(job), "report": report, "mailbox": channel},
                scaling_config=ScalingConfig(
                    num_workers=job.processes,
                    use_gpu=job.gpus > 0,
                    resources_per_worker=each,
                    placement_strategy="STRICT_PACK",
                ),
                run_config=RunConfig(
                    name="trial",
                    storage_path=scratch,
                    failure_config=FailureConfig(controller_failure_limit=START_TRIES, max_preemption_failures=0),
                    worker_runtime_env=hidden,
                ),
            ).fit()
        end.set_result(None)
    except Exception as error:  # told by the thread that waits
        end.set_exception(error)
    finally:
        channel.close.remote()


class RaisedError(Exception):
    """Wraps what the training raised in a process, so that it differs from the death of one."""


def worker_main(config: dict[str, Any]) -> None:
    """What each process does; only the first reports, and only a lost process ends without an exception of ours."""
    try:
        worker_train(TrialJob(**config["job"]), TrialReport.from_json(config["report"]), config["mailbox"])
    except Exception as error:
        raise RaisedError(picklable_error(error)) from error


def worker_train(job: TrialJob, report: TrialReport, channel: Any) -> None:
    """Train this process's part of every batch."""
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
    listener = WarningCollector(report.notes)
    logging.getLogger("fgseg").addHandler(listener)

    def send(latest: TrialReport) -> None:
        ray.get(channel.send.remote(latest.to_json()))

    send(report)  # says where it is, and what has to be given back should it die before the first epoch
    train_trial(job, run, report, send)


def picklable_error(error: Exception) -> Exception:
    """The exception, or its description where it does not survive the way to another process."""
    try:
        return (
            error
            if type(pickle.loads(pickle.dumps(error))) is type(error)
            else RuntimeError(one_line(error, with_type=True))
        )
    except Exception:  # whatever an exception's own code raises
        return RuntimeError(one_line(error, with_type=True))


def root_error(error: WorkerGroupError) -> Exception:
    """What the training raised in one of the processes, or LostProcessError where a process has died."""
    failures = list(error.worker_failures.values())
    raised = [failure.args[0] for failure in failures if isinstance(failure, RaisedError)]
    if len(raised) < len(failures) or any(is_connection_error(cause) for cause in raised):
        return LostProcessError(one_line(error, with_type=True))
    return raised[0]


def is_connection_error(error: Exception) -> bool:
    """Whether an exception only says that another process is gone."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or any(sign in str(error) for sign in BROKEN)


class ReportChannel:
    """A Ray actor: one sends, one receives, and every report is answered before the next one."""

    def __init__(self) -> None:
        self.letters: asyncio.Queue[tuple[str | None, asyncio.Event]] = asyncio.Queue()
        self.noted = asyncio.Event()

    async def send(self, report: str) -> None:
        """Hand over a report; returns when the driver has taken note of it."""
        noted = asyncio.Event()
        await self.letters.put((report, noted))
        await noted.wait()

    async def close(self) -> None:
        """No report will come any more."""
        await self.letters.put((None, asyncio.Event()))

    async def receive(self) -> str | None:
        """The next report, or None at the end; to ask for it says that the driver has taken note of the one before."""
        self.noted.set()
        report, self.noted = await self.letters.get()
        return report
