"""A search in memory whose trials take their epochs from a function instead of a training."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fgseg.results import EpochResult
from search.ledger.ledger import first_attempt
from search.ledger.records import EpochEvent, State, TrialRecord
from search.ledger.trial_source import NewTrial, TrialSource

Curve = Callable[[NewTrial], Sequence[EpochResult]]
"""Returns the epochs of a trial that is not stopped early."""


class ScriptedSearch:
    """Runs the trials of a source one after the other; records what a ledger would record, without a database.

    Args:
        source: suggests the trials and decides about early stopping, as in a real search.
        epochs: full length of a trial.

    Attributes:
        records: all trials, by number.
        epochs_spent: epochs of all trials.
    """

    def __init__(self, source: TrialSource, epochs: int) -> None:
        self.source, self.epochs = source, epochs
        self.records: list[TrialRecord] = []
        self._seq = 0

    @property
    def epochs_spent(self) -> int:
        """Epochs that all trials have trained."""
        return sum(len(record.epochs) for record in self.records)

    def run(self, curve: Curve) -> None:
        """Run all trials that are left."""
        while (new := self.source.next_trial(self.records)) is not None:
            self.run_trial(new, curve)

    def run_trial(self, new: NewTrial, curve: Curve) -> None:
        """Run one trial to its end, or until the source stops it."""
        number = len(self.records)
        self.records.append(first_attempt(number, new, self.epochs, self._next_seq()))
        for result in curve(new):
            self._report(number, result)
            if result.epoch < self.epochs and self.source.prunes and self._should_prune(number):
                return self._end(number, State.PRUNED)
        self._end(number, State.COMPLETE, self.records[number].epochs[-1])

    def _report(self, number: int, result: EpochResult) -> None:
        record, seq = self.records[number], self._next_seq()
        events = (*record.epoch_events, EpochEvent(seq, attempt=1))
        self.records[number] = replace(record, epochs=[*record.epochs, result], epoch_events=events, seq=seq)

    def _should_prune(self, number: int) -> bool:
        stop = self.source.should_prune(self.records, number)
        record, seq = self.records[number], self._next_seq()
        event = replace(record.epoch_events[-1], stop=stop, stop_seq=seq)
        self.records[number] = replace(record, epoch_events=(*record.epoch_events[:-1], event), seq=seq)
        return stop

    def _end(self, number: int, state: State, selected: EpochResult | None = None) -> None:
        seq, record = self._next_seq(), replace(self.records[number], state=state)
        if selected is not None:
            record = replace(record, value=selected.miou, selected=selected.epoch)
        self.records[number] = replace(record, ended_seq=seq, seq=seq)

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq


def scripted_epoch(epoch: int, miou: float, frame_miou: Sequence[float] = ()) -> EpochResult:
    """Return an epoch of which nothing but the mIoU is known, and that of each frame if it is given."""
    unknown: dict[str, Any] = {"confusion": [], "loss": 0.0, "terms": {}, "images_per_s": 0.0, "seconds": 0.0}
    return EpochResult(epoch, miou, iou={}, wall_time=0.0, attempt=1, frame_miou=list(frame_miou), **unknown)
