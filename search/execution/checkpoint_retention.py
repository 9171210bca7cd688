"""Which checkpoints of finished trials are kept: those of the best, and the start point's."""

from fgseg import checkpoints
from fgseg.checkpoints.manifest import keep_only
from search.ledger.ledger import Ledger
from search.ledger.records import TrialRecord, kept_trials
from search.study.location import StudyLocation


class CheckpointRetention:
    """Deletes the checkpoints that are not kept, once the ledger has recorded the end of their trial.

    A listener of trial events; raises OSError where a file cannot be deleted.

    Args:
        num_to_keep: number of best trials that keep the weights of their selected epoch.
        location: of the study.
        ledger: of the study.
    """

    def __init__(self, num_to_keep: int, location: StudyLocation, ledger: Ledger):
        self.num_to_keep, self.location, self.ledger = num_to_keep, location, ledger
        self.kept: list[TrialRecord] = []

    def apply(self) -> None:
        """Bring the folders of all ended trials in line with the ledger; repeating it changes nothing."""
        self.kept = []
        self._add([trial for trial in self.ledger.trials() if not trial.is_open])

    def on_attempt(self, record: TrialRecord) -> None:
        """Do nothing."""

    def on_epoch(self, record: TrialRecord) -> None:
        """Do nothing: a running trial keeps its own newest checkpoints."""

    def on_trial_end(self, record: TrialRecord) -> None:
        """Apply the retention: a new best trial displaces another one, and one that was not kept never comes back."""
        self._add([record])

    def on_note(self, number: int | None, text: str) -> None:
        """Do nothing."""

    def _add(self, ended: list[TrialRecord]) -> None:
        """Rank more ended trials among those that are kept, and prune their folders and those of the displaced."""
        trials = self.kept + ended
        floors = self.ledger.metadata.constraint.floors
        numbers = kept_trials(trials, self.ledger.best(trials), self.num_to_keep, floors)
        for trial in self.kept:
            if trial.number not in numbers:
                self._prune(trial, stays=False)
        for trial in ended:
            self._prune(trial, stays=trial.number in numbers)
        self.kept = [trial for trial in trials if trial.number in numbers]

    def _prune(self, trial: TrialRecord, stays: bool) -> None:
        """Delete all checkpoints of a trial, or all but the newest one of its selected epoch."""
        store = self.location.trial_store(trial.number)
        store.remove_temporary()
        kept = checkpoints.find(store, trial.selected) if stays and trial.selected is not None else None
        keep_only(store, [kept] if kept else [], trial.attempt)
