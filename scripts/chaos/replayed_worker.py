"""What `replayed_search` runs in processes besides the driver: a worker that trains nothing, and the report.

The weights of a replayed trial fit no model, so the report shows no predicted frames.
"""

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

from fgseg.config.settings import RunConfig
from scripts.chaos.replayed_study import replayed_trial
from search.execution.messages import TrialJob, TrialReport
from search.report.background import send_report
from search.report.frames import Frames
from search.study.location import StudyLocation


def replay(epoch_s: float) -> Callable[[dict[str, Any]], None]:
    """Return a replacement of the worker's `run_trial` that waits `epoch_s` seconds after each epoch."""

    def train(job: TrialJob, run: RunConfig, report: TrialReport, send: Callable[[TrialReport], None]) -> None:
        for replayed in replayed_trial(job):
            report.epochs = list(replayed.epochs)
            send(report)
            time.sleep(epoch_s)

    def run_trial(config: dict[str, Any]) -> None:
        from search.execution.worker import run_job, send_to_driver  # imports Ray, which the report does not need

        job = TrialJob(**config)
        send_to_driver(TrialReport(job.number, job.attempt))
        run_job(job, send_to_driver, train)

    return run_trial


def send_report_without_frames(connection: Connection, location: StudyLocation, frames: bool) -> None:
    """Write the report as `search.report.background.send_report` does, but predict no frames."""
    with patch("search.report.frames.choose_frames", lambda *arguments: Frames((), "No frames.")):
        send_report(connection, location, frames)
