"""MLflow as a projection of the ledger: written for people, and rebuilt from it at any time.

When that happens, and what becomes of faults; mirror.py does it.  Importing this file is cheap: MLflow itself (1.1 s)
is imported by `Tracker()` and `reconcile`.
"""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from types import MappingProxyType

from search.background import BackgroundWriter
from search.mirror import Mirror
from search.projection import LedgerReader, Phase, StudyCard, TrialSettings, explain
from search.study.location import public_address
from search.tracking_setup import environment, load_client

LOG = logging.getLogger("search.tracking")


class TrackingError(Exception):
    """MLflow could not be written: address and cause in one line, without credentials."""


class Tracker(BackgroundWriter):
    """Writes a study to MLflow from one background thread, so that training never waits for a server.

    `start`, `notify`, `publish` and `stop` neither raise nor print what the server answers; the first failure is logged
    once, as a warning of the logger `search.tracking`.  The ledger is read from the thread.
    """

    def __init__(self, ledger_reader: LedgerReader, uri: str, card: StudyCard, trial_settings: TrialSettings):
        with environment():
            # Here and not in the thread: two threads that import the same libraries at once can see halves of them.
            load_client()
        self._address = public_address(uri)
        self._warned = False
        self._scope = ExitStack()
        super().__init__(lambda: Mirror(ledger_reader, uri, card, trial_settings), self._warn)

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


def reconcile(
    ledger: LedgerReader,
    uri: str,
    card: StudyCard,
    trial_settings: TrialSettings,
    *,
    phase: Phase = "finished",
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Bring MLflow in line with the ledger, in this thread; repeating it changes nothing.

    Args:
        phase: "running" leaves open trials RUNNING, the others close them as KILLED.
        files: kept with the study's run, by name.

    Raises:
        TrackingError: the server could not be reached or refused a request.
    """
    with environment():
        try:
            mirror = Mirror(ledger, uri, card, trial_settings)
            mirror.write_all(phase)
            for name, data in files.items():
                mirror.write_file(name, data)
        except Exception as error:
            # `from None`, since MLflow's own message may hold the address with its password.
            raise TrackingError(f"MLflow at {public_address(uri)}: {explain(error)}") from None
