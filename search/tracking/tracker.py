"""MLflow as a projection of the ledger: written for people, and rebuilt from it at any time.

When that happens, and what becomes of faults; mirror.py does it.  Importing this file is cheap: MLflow itself (1.1 s)
is imported by `Tracker()` and `reconcile`.
"""

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from search.study.location import StudyLocation, public_address
from search.tracking.client import environment, load_client
from search.tracking.run_schema import LedgerReader, Phase, explain
from search.tracking.run_writer import StudyRunWriter

if TYPE_CHECKING:
    from search.ledger.records import TrialRecord
    from search.ledger.study_metadata import StudyMetadata

LOG = logging.getLogger("search.tracking.tracker")


FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 30.0
LAST_TRIES = 3
"""How often the closing pass may fail before the thread gives up."""


class Writer(Protocol):
    """Something that mirrors the ledger; it may raise anything at any time and is then replaced by a fresh one."""

    def write_all(self, phase: Phase) -> None: ...

    def write_changes(self, numbers: set[int | None]) -> None: ...

    def write_file(self, name: str, data: bytes) -> None: ...


class BackgroundWriter:
    """Feeds a writer from one daemon thread.

    A failure loses nothing: the writer is dropped, and after a pause a fresh one makes a full pass over the ledger.
    """

    def __init__(self, open_writer: Callable[[], Writer], on_failure: Callable[[Exception], None]):
        self._open_writer = open_writer
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._numbers: set[int | None] = set()
        self._files: dict[str, bytes] = {}
        self._closing: Phase | None = None
        self._written = self._left = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self) -> None:
        """Start the thread, which begins with a full pass; returns at once."""
        self._thread.start()

    def notify(self, number: int | None = None) -> None:
        """Say that a trial, or with None the study, has changed in the ledger.  Returns within microseconds."""
        with self._changed:
            self._numbers.add(number)
            self._changed.notify()

    def publish(self, name: str, data: bytes) -> None:
        """Ask for a file to be kept with the study, in place of one of that name such as `report/report.html`."""
        with self._changed:
            self._files[name] = data
            self._changed.notify()

    def stop(self, timeout_s: float, interrupted: bool = False) -> bool:
        """Make a last full pass that closes the study, as interrupted if it was or if trials are open.

        Returns:
            Whether everything is written.  False at the latest after `timeout_s` seconds, and at once if the writer
            never started or fails three more times.
        """
        with self._changed:
            self._closing = "interrupted" if interrupted else "finished"
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return self._written

    def abandon(self) -> None:
        """End without a last pass: the mirror is another driver's now.  Returns at once."""
        with self._changed:
            self._left = True
            self._changed.notify()

    @property
    def running(self) -> bool:
        """Whether the thread is at work; after `stop` only if it is still waiting for an answer."""
        return self._thread.is_alive()

    def _run(self) -> None:
        writer: Writer | None = None
        failures = closing_failures = 0
        while not self._written and closing_failures < LAST_TRIES:
            numbers, files, closing = self._take(wait=writer is not None)
            if self._left:
                return
            try:
                writer = self._write(writer, numbers, files, closing)
                failures, self._written = 0, closing is not None
            except Exception as error:  # whatever it is, it must neither end the thread nor reach the driver
                writer, failures = None, failures + 1
                closing_failures += closing is not None
                self._on_failure(error)
                self._wait_before_retry(failures, files)

    def _take(self, wait: bool) -> tuple[set[int | None], dict[str, bytes], Phase | None]:
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._numbers or self._files or self._closing or self._left)
            taken = self._numbers, self._files, self._closing
            self._numbers, self._files = set(), {}
            return taken

    def _write(
        self, writer: Writer | None, numbers: set[int | None], files: dict[str, bytes], closing: Phase | None
    ) -> Writer:
        if writer is None or closing is not None:
            writer = writer or self._open_writer()
            writer.write_all(closing or "running")
        else:
            writer.write_changes(numbers)
        for name, data in files.items():
            writer.write_file(name, data)
        return writer

    def _wait_before_retry(self, failures: int, files: dict[str, bytes]) -> None:
        delay_s = min(FIRST_RETRY_S * 2 ** (failures - 1), LONGEST_RETRY_S)
        with self._changed:
            self._files = files | self._files
            if self._closing is not None:
                self._changed.wait(FIRST_RETRY_S)
            else:
                self._changed.wait_for(lambda: self._closing is not None or self._left, delay_s)


class Tracker(BackgroundWriter):
    """Writes a study to MLflow from one background thread, so that training never waits for a server.

    `start`, `notify`, `publish` and `stop` neither raise nor print what the server answers; the first failure is logged
    once, as a warning of the logger `search.tracking.tracker`.  The ledger is read from the thread.
    """

    def __init__(self, ledger: LedgerReader, location: StudyLocation, metadata: "StudyMetadata"):
        with environment():
            # Here and not in the thread: two threads that import the same libraries at once can see halves of them.
            load_client()
        self._address = public_address(location.tracking_uri)
        self._warned = False
        self._scope = ExitStack()
        super().__init__(lambda: StudyRunWriter(ledger, location, metadata), self._warn)

    def on_attempt(self, record: "TrialRecord") -> None:
        """Create or reopen the trial's run."""
        self.notify(record.number)

    def on_epoch(self, record: "TrialRecord") -> None:
        """Log the new points of a trial."""
        self.notify(record.number)

    def on_trial_end(self, record: "TrialRecord") -> None:
        """Close the trial's run, and update the study's."""
        self.notify(record.number)

    def on_note(self, number: int | None, text: str) -> None:
        """Do nothing: MLflow does not show notes."""

    def start(self) -> None:
        """Start the thread, which begins with a full pass; returns at once."""
        self._scope.enter_context(environment())
        super().start()

    def stop(self, timeout_s: float, interrupted: bool = False) -> bool:
        """Write what is missing and close the study's run: FINISHED, or KILLED if interrupted or trials are open.

        Returns:
            Whether MLflow holds everything.  False at the latest after `timeout_s` seconds, sooner if the server
            refuses three more times; the next run of the study writes the rest then.
        """
        written = super().stop(timeout_s, interrupted)
        if not self.running:
            self._scope.close()
        return written

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            advice = "the search goes on; what MLflow misses is sent once it answers, or by running the command again"
            LOG.warning("MLflow at %s: %s; %s", self._address, explain(error), advice)
