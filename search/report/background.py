"""Keep a study's report up to date while trials run, in a child process of low priority."""

import logging
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from fgseg.config.errors import ConfigError
from search.ledger.database import LedgerError
from search.ledger.records import TrialRecord
from search.study.child_process import ChildError, ChildProcess
from search.study.location import PAGE, StudyLocation

log = logging.getLogger(__name__)

EVERY_S = 60.0
"""Minimum seconds before the first report of a run, and between two, while trials run; each takes seconds of a core."""
FRAMES_S = 180.0
"""Seconds until the last report, which predicts frames, is cancelled."""
LOWEST_PRIORITY = 19
"""Niceness of a report while trials run."""


class ReportWriter:
    """Write the report of one study in child processes, at most one at a time.  Not thread-safe.

    Args:
        location: of the study.
        publish: called with the name and the bytes of each file of a finished report.
        every_s: minimum seconds before the first report and between the starts of two.
        is_current: whether the stored report is that of the end of a run, after all trials that have ended; a run that
            was killed leaves an earlier one.
    """

    def __init__(
        self,
        location: StudyLocation,
        publish: Callable[[str, bytes], None],
        every_s: float = EVERY_S,
        is_current: Callable[[], bool] = lambda: True,
    ):
        self.location, self.publish, self.every_s, self.is_current = location, publish, every_s, is_current
        self.store = location.report_store
        self.child: ChildProcess | None = None
        self.stale = self.changed = False
        self.begun = time.monotonic()  # a run that ends soon writes its report once, at its end

    def on_attempt(self, record: TrialRecord) -> None:
        """Publish a finished report (see `on_trial_update`)."""
        self.on_trial_update(changed=False)

    def on_epoch(self, record: TrialRecord) -> None:
        """Publish a finished report (see `on_trial_update`)."""
        self.on_trial_update(changed=False)

    def on_trial_end(self, record: TrialRecord) -> None:
        """Mark the report as out of date; see `on_trial_update`."""
        self.on_trial_update(changed=True)

    def on_note(self, number: int | None, text: str) -> None:
        """Do nothing: the report does not show notes."""

    def on_trial_update(self, changed: bool) -> None:
        """Publish a finished report and start the next one if it is due; returns at once.

        Args:
            changed: whether a trial has ended, so that the last report is out of date.
        """
        self.stale, self.changed = self.stale or changed, self.changed or changed
        try:
            if self.child is not None and self.child.has_message():
                self._collect(self.child)
            if self.stale and self.child is None and time.monotonic() - self.begun >= self.every_s:
                self._start(frames=False)
        except (ChildError, OSError) as error:  # the report is late; `finish` reports a lasting error
            log.debug("no report now: %s", error)

    def finish(self, must_stop: Callable[[], bool] = lambda: False) -> str:
        """Write the report with frames, unless nothing has changed since the last one, which is published again.

        Args:
            must_stop: called several times a second; True cancels the report, which is no failure.

        Returns:
            Empty, or in one line why the report could not be written.
        """
        self.stop()
        try:
            if not self.changed and PAGE in self.store.list() and self.is_current():
                self._publish()  # the run that wrote the report may have been killed before
                return ""
            self._collect(self._start(frames=True), FRAMES_S, must_stop)
        except (ChildError, OSError) as error:
            return "" if must_stop() else str(error)
        return ""

    def stop(self) -> None:
        """Cancel a report in progress; the files of the last finished report are kept.  May be repeated."""
        if self.child is not None:
            self.child.close()
            self.child = None

    def _start(self, frames: bool) -> ChildProcess:
        """Start a child that writes the report; the last report of a run, with frames, has normal priority."""
        self.stale, self.begun = False, time.monotonic()
        niceness = 0 if frames else LOWEST_PRIORITY
        self.child = ChildProcess(send_report, self.location, frames, niceness=niceness)
        return self.child

    def _collect(
        self, child: ChildProcess, limit_s: float = 0.0, must_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait for the report and publish its files; raises ChildError if there is none."""
        try:
            child.receive(limit_s, must_stop)
        finally:
            self.stop()
        self._publish()

    def _publish(self) -> None:
        """Publish the stored files."""
        for name in self.store.list():
            self.publish(f"report/{name}", self.store.get(name))


def send_report(connection: Connection, location: StudyLocation, frames: bool) -> None:
    """Write the report, then send None; runs in the child."""
    from search.report.build import write_report

    try:
        write_report(location, frames)
    except (ConfigError, LedgerError, OSError) as error:
        raise ChildError(str(error)) from None
    connection.send(None)
