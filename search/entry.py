"""Epochs into Optuna's tables in one transaction: each one waits for the disk, and Optuna's own calls make one each."""

import math
from collections.abc import Sequence

from optuna.storages import BaseStorage
from optuna.storages._rdb.models import TrialUserAttributeModel
from optuna.trial import FrozenTrial

from fgseg.epoch import EpochResult
from search.record import read_epochs


def write_missing(storage: BaseStorage, trial: FrozenTrial, epochs: Sequence[EpochResult]) -> list[EpochResult]:
    """Record what an open trial lacks of a history, all of it or none, and return all epochs that it has then.

    An epoch once recorded stays as it is.  Finite mIoUs become intermediate values, for pruners and dashboards.

    Args:
        storage: of a study in a database, as `Study` holds it.
        trial: as it was just read.
        epochs: from 1 on.

    Raises:
        UpdateFinishedTrialError: the trial has ended meanwhile.
    """
    known = {epoch.epoch: epoch for epoch in read_epochs(trial)}
    merged = {epoch.epoch: epoch for epoch in epochs} | known
    new = [epoch for epoch in epochs if epoch.epoch not in known]
    values = {k: e.miou for k, e in merged.items() if k not in trial.intermediate_values and math.isfinite(e.miou)}
    if new or values:
        write(storage, trial._trial_id, new, values)
    return list(merged.values())


def write(storage: BaseStorage, trial_id: int, epochs: Sequence[EpochResult], values: dict[int, float]) -> None:
    """Insert epochs, and intermediate values by number of the epoch, in one transaction."""
    backend = storage._backend
    session = backend.scoped_session()
    try:
        with session.begin():
            for epoch in epochs:
                entry = (f"epoch/{epoch.epoch}", epoch.to_json())
                backend._set_trial_attr_without_commit(session, TrialUserAttributeModel, trial_id, *entry)
            for number, value in values.items():
                backend._set_trial_intermediate_value_without_commit(session, trial_id, number, value)
    finally:
        session.close()
