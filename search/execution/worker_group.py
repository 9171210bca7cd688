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
from search.execution.messages import Job, Report
from search.execution.worker import (
    Listener,
    LostProcessError,
    Send,
    carry_out,
    check_node,
    describe,
    learn,
    prepare,
    send_to_driver,
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


idle = threading.Event()
"""Set while this process has no group of processes."""
idle.set()


def run_group_trial(config: dict[str, Any]) -> None:
    """Train a job in several processes; see `search.execution.worker.run_trial`."""
    carry_out(Job(**config), send_to_driver, learn_in_group)


class GroupTrial(wrap_function(run_group_trial)):  # type: ignore[misc]
    """Ray Tune's trainable for jobs of several processes."""

    def cleanup(self) -> None:
        """End the trial, and wait for its processes: Ray Train's controller would be killed with this one."""
        super().cleanup()
        idle.wait(STOP_S)


def learn_in_group(job: Job, run: settings.RunConfig, report: Report, send: Send) -> None:
    """`search.execution.worker.learn`, done by several processes; `run` is built in each of them again.

    Raises:
        LostProcessError: one of them has died.
        Exception: what the training raised in one of them.
    """
    idle.clear()
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    end: Future[None] = Future()
    thread = threading.Thread(target=train_group, args=(job, report.to_json(), mailbox, end), daemon=True)
    thread.start()
    try:
        while (letter := ray.get(mailbox.receive.remote())) is not None:
            latest = Report.from_json(letter)
            report.epochs, report.test = latest.epochs, latest.test
            report.node, report.reserved = latest.node, latest.reserved
            report.notes[:] = latest.notes
            send(report)
        end.result()
    except WorkerGroupError as error:
        raise cause_of(error) from None
    except (TrainingFailedError, RayError) as error:
        raise LostProcessError(describe(error)) from None
    finally:
        ray.kill(mailbox)  # a process that waits for an answer stops
        thread.join(STOP_S)
        idle.set()


def train_group(job: Job, report: str, mailbox: Any, end: "Future[None]") -> None:
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
                take_part,
                train_loop_config={"job": asdict(job), "report": report, "mailbox": mailbox},
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
        mailbox.close.remote()


class RaisedError(Exception):
    """Wraps what the training raised in a process, so that it differs from the death of one."""


def take_part(config: dict[str, Any]) -> None:
    """What each process does; only the first reports, and only a lost process ends without an exception of ours."""
    try:
        train_part(Job(**config["job"]), Report.from_json(config["report"]), config["mailbox"])
    except Exception as error:
        raise RaisedError(portable(error)) from error


def train_part(job: Job, report: Report, mailbox: Any) -> None:
    """Train this process's part of every batch."""
    from torch.distributed import get_rank

    run = loading.build([loading.Layer(f"trial {job.number}", job.settings | report.overrides)])
    check_node(job)
    if get_rank() > 0:
        from fgseg.training.loop import train

        prepare(job)
        train(run, job.folder)
        return
    context = ray.get_runtime_context()
    report.node, report.reserved = context.get_node_id(), context.get_placement_group_id()
    listener = Listener(report.notes)
    logging.getLogger("fgseg").addHandler(listener)

    def send(latest: Report) -> None:
        ray.get(mailbox.send.remote(latest.to_json()))

    send(report)  # says where it is, and what has to be given back should it die before the first epoch
    learn(job, run, report, send)


def portable(error: Exception) -> Exception:
    """The exception, or its description where it does not survive the way to another process."""
    try:
        return error if type(pickle.loads(pickle.dumps(error))) is type(error) else RuntimeError(describe(error))
    except Exception:  # whatever an exception's own code raises
        return RuntimeError(describe(error))


def cause_of(error: WorkerGroupError) -> Exception:
    """What the training raised in one of the processes, or LostProcessError where a process has died."""
    failures = list(error.worker_failures.values())
    raised = [failure.args[0] for failure in failures if isinstance(failure, RaisedError)]
    if len(raised) < len(failures) or any(is_broken(cause) for cause in raised):
        return LostProcessError(describe(error))
    return raised[0]


def is_broken(error: Exception) -> bool:
    """Whether an exception only says that another process is gone."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or any(sign in str(error) for sign in BROKEN)


class Mailbox:
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
