"""A search whose driver runs as it is, on a simulated Ray and clock, with trials of given durations."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from builders import make_epoch

from scripts.chaos.replayed_study import small_plan
from scripts.chaos.simulated_study import HOSTS, Study
from scripts.chaos.virtual_time import Process, Thread
from search.compare.confirmation import search_and_confirm
from search.execution.messages import TrialJob, TrialReport
from search.ledger.records import TrialRecord
from search.ledger.study_metadata import StudyMetadata
from search.ledger.study_reader import StudyReader

FIRST_START_S = 26.0
"""Seconds until the first trial of a worker begins, which imports torch; measured in a quickstart on two cores."""
NEXT_START_S = 0.5


class TimedSearch(Study):
    """A search of two trials at a time.

    Args:
        seconds: duration of an epoch by trial number and epoch.
        miou: of every epoch of a trial.
    """

    def __init__(
        self,
        seconds: Callable[[int, int], float],
        miou: Callable[[TrialJob], float] = lambda job: 0.5 + 0.01 * job.number,
    ) -> None:
        super().__init__(seed=0)
        self.seconds, self.miou = seconds, miou
        self.jobs: list[TrialJob] = []
        self.warm: set[str] = set()
        self.records: list[TrialRecord] = []
        self.metadata = StudyMetadata()
        self.output = ""

    def train(self, job: TrialJob, run: None, report: TrialReport, send: Callable[[TrialReport], None]) -> None:
        """Report epochs of the given durations, after those that an earlier attempt has reported."""
        self.jobs.append(job)
        node = self.clock.process.host
        self.clock.sleep(NEXT_START_S if node in self.warm else FIRST_START_S)
        self.warm.add(node)
        report.epochs = self.reported(job.number)
        for number in range(len(report.epochs) + 1, job.settings["train.epochs"] + 1):
            seconds = self.seconds(job.number, number)
            self.clock.sleep(seconds)
            iou = {"car": math.nan, "pole": self.miou(job)}
            changes = {"iou": iou, "wall_time": self.clock.now, "attempt": job.attempt, "seconds": seconds}
            report.epochs.append(make_epoch(number, self.miou(job), **changes))
            send(report)

    def reported(self, number: int) -> list[Any]:
        """Return the epochs of a trial that an earlier run has recorded."""
        return list(self.records[number].epochs) if number < len(self.records) else []

    def run_once(self, trials: int, epochs: int, **search: Any) -> float:
        """Run the command until its driver ends; returns the seconds that it took.

        Args:
            trials, epochs: of the study.
            search: further settings of `SearchConfig`.
        """
        self.plan = small_plan(
            Path("/simulated"),
            trials,
            epochs,
            tracking_uri="http://mlflow",
            register_model=False,
            **search,
        )
        self.done, began = False, self.clock.now
        self.warm.clear()
        with self.replacing(), patch("scripts.chaos.simulated_study.run_study", search_and_confirm):
            driver = self.start_driver(HOSTS[0])
            while driver.alive and self.clock.queue:
                self.clock.run(self.clock.queue[0][0])
            ended = self.clock.now
            reader = Process(self.clock, HOSTS[0])
            Thread(self.read, process=reader, clock=self.clock).start()
            self.clock.run(ended + 1)
        self.output = self.outputs[driver].getvalue()
        assert not self.violations
        return ended - began

    def read(self) -> None:
        """Read the ledger."""
        ledger = StudyReader(self.plan.location.ledger_url, self.plan.study)
        self.records, self.metadata = ledger.trials(), ledger.metadata
