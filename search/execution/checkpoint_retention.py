"""Which checkpoints of finished trials are kept: those of the best, and the start point's."""

from collections.abc import Callable, Sequence

from fgseg.checkpoints.manifest import keep_only, list_manifests
from fgseg.storage.store import open_store
from search.ledger.records import State, TrialRecord, rank_trials

START_POINT = 0


class CheckpointRetention:
    """Deletes checkpoints that nobody will ask for, once the ledger says that their trial has ended.

    Args:
        count: of the best trials that keep the weights of their selected epoch.
        folder_of: the address of a trial's folder by its number.
    """

    def __init__(self, count: int, folder_of: Callable[[int], str]):
        self.count, self.folder_of = count, folder_of
        self.tidied: dict[int, bool] = {}

    def apply(self, trials: Sequence[TrialRecord]) -> None:
        """Bring the folders of ended trials in line with the ledger; repeating it changes nothing."""
        # Trials with a changed batch beside the others: a later run may allow one of them to be the best.
        rankings = (rank_trials(trials, changed_batch=True), rank_trials(trials, changed_batch=False))
        kept = {t.number for ranking in rankings for t in ranking[: self.count]} | {START_POINT}
        for trial in trials:
            stays = trial.number in kept and trial.state is State.COMPLETE
            if trial.state is not State.RUNNING and self.tidied.get(trial.number) is not stays:
                self._prune(trial, stays)
                self.tidied[trial.number] = stays

    def _prune(self, trial: TrialRecord, stays: bool) -> None:
        """Delete all checkpoints of a trial, or all but the newest one of the epoch that stands for it."""
        store = open_store(self.folder_of(trial.number))
        store.remove_temporary()
        kept = [m for m in list_manifests(store) if stays and m.epoch == trial.selected][:1]
        keep_only(store, kept, trial.attempt)
