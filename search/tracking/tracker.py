"""Write a study to MLflow in a background thread while trials run: scheduling and retries; run_writer.py sends.

MLflow itself (1.1 s) is imported by `Tracker()`, not by this module.
"""

import logging
import threading
import time
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
"""Seconds until the first retry, and between later ones at most; the delay doubles with each failure in a row."""
LAST_TRIES = 3
"""Failures of the closing pass until the thread ends without having written everything."""


class Writer(Protocol):
    """Writes the ledger to MLflow; a writer that has raised any error is replaced by a new one."""

    def write_all(self, phase: Phase) -> None: ...

    def write_changes(self, numbers: set[int]) -> None: ...

    def write_file(self, name: str, data: bytes) -> None: ...


class BackgroundWriter:
    """Calls a writer from one daemon thread.  Public methods may be called from any thread.

    After a failure, a new writer makes a full pass over the ledger, so that nothing is lost.

    Args:
        open_writer: creates a writer; called in the thread.
        on_failure: called in the thread with every error of the writer.
    """

    def __init__(self, open_writer: Callable[[], Writer], on_failure: Callable[[Exception], None]):
        self._open_writer = open_writer
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._numbers: set[int] = set()
        self._files: dict[str, bytes] = {}
        self._closing: Phase | None = None
        self._written = self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def start(self) -> None:
        """Start the thread, which begins with a full pass over the ledger; returns at once.  May be called once."""
        self._thread.start()

    def notify(self, number: int) -> None:
        """Schedule the update of a trial's run.  Returns within microseconds."""
        with self._changed:
            self._numbers.add(number)
            self._changed.notify()

    def publish(self, name: str, data: bytes) -> None:
        """Schedule a file such as `report/report.html` for the parent run; replaces one of the same name."""
        with self._changed:
            self._files[name] = data
            self._changed.notify()

    def stop(self, timeout_s: float, interrupted: bool = False) -> bool:
        """Make a last full pass that closes the study, and wait for it.

        Args:
            timeout_s: maximum seconds to wait.
            interrupted: whether the run was interrupted; a study with open trials counts as interrupted in any case.

        Returns:
            Whether everything is written.  False after `timeout_s` seconds, or earlier if the thread was never
            started or the pass fails `LAST_TRIES` times.
        """
        with self._changed:
            self._closing = "interrupted" if interrupted else "finished"
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return self._written

    def abandon(self) -> None:
        """End the thread without a last pass, because another driver now writes the study.  Returns at once."""
        with self._changed:
            self._abandoned = True
            self._changed.notify()

    @property
    def running(self) -> bool:
        """Whether the thread is alive; after `stop` only if a request has not returned yet."""
        return self._thread.is_alive()

    def _run(self) -> None:
        writer: Writer | None = None
        failures = closing_failures = 0
        while not self._written and closing_failures < LAST_TRIES:
            numbers, files, closing = self._take(wait=writer is not None)
            if self._abandoned:
                return
            began = time.thread_time()
            try:
                writer = self._write(writer, numbers, files, closing)
                failures, self._written = 0, closing is not None
                self._rest(time.thread_time() - began)
            except Exception as error:  # no error may end the thread or reach the driver
                writer, failures = None, failures + 1
                closing_failures += closing is not None
                self._on_failure(error)
                self._wait_before_retry(failures, files)

    def _take(self, wait: bool) -> tuple[set[int], dict[str, bytes], Phase | None]:
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._numbers or self._files or self._closing or self._abandoned)
            taken = self._numbers, self._files, self._closing
            self._numbers, self._files = set(), {}
            return taken

    def _write(
        self, writer: Writer | None, numbers: set[int], files: dict[str, bytes], closing: Phase | None
    ) -> Writer:
        if writer is None or closing is not None:
            writer = writer or self._open_writer()
            writer.write_all(closing or "running")
        else:
            writer.write_changes(numbers)
        for name, data in files.items():
            writer.write_file(name, data)
        return writer

    def _rest(self, seconds: float) -> None:
        """Leave the interpreter to the driver for as long as this thread has used it; changes gather meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._abandoned, seconds)

    def _wait_before_retry(self, failures: int, files: dict[str, bytes]) -> None:
        delay_s = min(FIRST_RETRY_S * 2 ** (failures - 1), LONGEST_RETRY_S)
        with self._changed:
            self._files = files | self._files
            if self._closing is not None:
                self._changed.wait(FIRST_RETRY_S)
            else:
                self._changed.wait_for(lambda: self._closing is not None or self._abandoned, delay_s)


class Tracker(BackgroundWriter):
    """Writes a study to MLflow from one background thread, so that training never waits for a server.

    Methods do not raise the server's errors; the first one is logged as a warning of the logger
    `search.tracking.tracker`.

    Args:
        ledger: of the study; read from the thread.
        location: of the study.
        metadata: of the study.
        pause: called before each request.
    """

    def __init__(
        self,
        ledger: LedgerReader,
        location: StudyLocation,
        metadata: "StudyMetadata",
        pause: Callable[[], None] = lambda: None,
    ):
        with environment():
            # Imported here, since two threads that import the same library at once can see a half-initialised module.
            load_client()
        self._address = public_address(location.tracking_uri)
        self._warned = False
        self._scope = ExitStack()
        super().__init__(lambda: StudyRunWriter(ledger, location, metadata, pause), self._warn)

    def on_attempt(self, record: "TrialRecord") -> None:
        """Schedule the creation or reopening of the trial's run."""
        self.notify(record.number)

    def on_epoch(self, record: "TrialRecord") -> None:
        """Schedule the metrics of a trial's new epoch."""
        self.notify(record.number)

    def on_trial_end(self, record: "TrialRecord") -> None:
        """Schedule the end of the trial's run and the update of the parent run."""
        self.notify(record.number)

    def on_note(self, number: int | None, text: str) -> None:
        """Do nothing: MLflow does not show notes."""

    def start(self) -> None:
        """Start the thread, which begins with a full pass over the ledger; returns at once.  May be called once."""
        self._scope.enter_context(environment())
        super().start()

    def stop(self, timeout_s: float, interrupted: bool = False) -> bool:
        """Write the rest and close the parent run: FINISHED, or KILLED if interrupted or trials are open.

        Args and result as in `BackgroundWriter.stop`; after False, the next run of the study writes the rest.
        """
        written = super().stop(timeout_s, interrupted)
        if not self.running:
            self._scope.close()
        return written

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            advice = (
                "the search continues; the missing data is sent when MLflow answers, or by running the command again"
            )
            LOG.warning("MLflow at %s: %s; %s", self._address, explain(error), advice)
