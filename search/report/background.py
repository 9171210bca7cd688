"""Keeps a study's report up to date while trials run: in a process of its own, at low priority, so that none waits."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from fgseg.config.errors import ConfigError
from search.ledger.database import LedgerError
from search.ledger.records import TrialRecord
from search.study.location import PAGE, StudyLocation

log = logging.getLogger(__name__)

EVERY_S = 60.0
"""Seconds between two reports of a study that runs, at least; one costs some seconds of one core."""
FRAMES_S = 180.0
"""How long the last report may take, which predicts frames."""
LOWEST_PRIORITY = 19


class ReportWriter:
    """Starts this file as a process that writes the report of one study, at most one at a time.

    Args:
        place: of the study.
        publish: called with the name and the bytes of each file once a report is whole.
        every_s: pause between the starts of two reports.
    """

    command = (sys.executable, "-m", "search.report.background")

    def __init__(self, location: StudyLocation, publish: Callable[[str, bytes], None], every_s: float = EVERY_S):
        self.location, self.publish, self.every_s = location, publish, every_s
        self.store = location.report_store
        self.process: subprocess.Popen[bytes] | None = None
        self.stale = self.changed = False
        self.begun = -every_s

    def on_attempt(self, record: TrialRecord) -> None:
        """See `on_trial_update`."""
        self.on_trial_update(changed=False)

    def on_epoch(self, record: TrialRecord) -> None:
        """See `on_trial_update`."""
        self.on_trial_update(changed=False)

    def on_trial_end(self, record: TrialRecord) -> None:
        """See `on_trial_update`: the report is out of date."""
        self.on_trial_update(changed=True)

    def on_note(self, number: int, text: str) -> None:
        """Do nothing: the report does not show notes."""

    def on_trial_update(self, changed: bool) -> None:
        """Start a report where one is due, and publish one that is whole; returns at once.

        Args:
            changed: whether a trial has ended, so that the report is out of date.
        """
        self.stale, self.changed = self.stale or changed, self.changed or changed
        try:
            if self.process is not None and self.process.poll() is not None:
                self._collect(self.process)
            if self.stale and self.process is None and time.monotonic() - self.begun >= self.every_s:
                os.setpriority(os.PRIO_PROCESS, self._start(frames=False).pid, LOWEST_PRIORITY)
        except OSError as error:  # a report that is late harms nobody: `finish` tells what is wrong
            log.debug("no report now: %s", error)

    def finish(self, must_stop: Callable[[], bool] = lambda: False) -> str:
        """Write the report with frames, unless nothing has changed; returns in one line why that failed, or nothing.

        `must_stop` is asked several times a second; a report that is given up is no failure.
        """
        self.stop()
        if not self.changed and PAGE in self.store.list():
            return ""
        try:
            process = self._start(frames=True)
            end = time.monotonic() + FRAMES_S
            while process.poll() is None and time.monotonic() < end:
                if must_stop():
                    self.stop()
                    return ""
                time.sleep(0.1)
            if process.returncode is not None:
                return self._collect(process)
        except OSError as error:
            return str(error)
        self.stop()
        return f"it took more than {FRAMES_S:.0f} s"

    def stop(self) -> None:
        """End a process that still writes; what was written before stays."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _start(self, frames: bool) -> "subprocess.Popen[bytes]":
        """Start a process that writes the report."""
        self.stale, self.begun = False, time.monotonic()
        self.process = subprocess.Popen(
            self.command,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C on the terminal is the driver's alone
        )
        pipe, self.process.stdin = self.process.stdin, None
        assert pipe is not None  # it was asked for
        with suppress(BrokenPipeError), pipe:  # one that has died already tells by its exit code
            # Not as arguments, which everybody on the machine can read: an address may hold a password.
            pipe.write(json.dumps({"place": asdict(self.location), "frames": frames}).encode())
        return self.process

    def _collect(self, process: "subprocess.Popen[bytes]") -> str:
        """Publish what an ended process has written; returns its last words if it failed."""
        _, errors = process.communicate()
        self.process = None
        if process.returncode:
            words = errors.decode(errors="replace").strip().splitlines()
            return words[-1] if words else f"exit code {process.returncode}"
        for name in self.store.list():
            self.publish(f"report/{name}", self.store.get(name))
        return ""


def main() -> int:
    """The process: writes the report that is ordered on its standard input."""
    order = json.load(sys.stdin)
    from search.report.build import write_report

    try:
        write_report(StudyLocation(**order["place"]), order["frames"])
    except (ConfigError, LedgerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
