"""Optuna's storage with a cache that is valid while the study's lock is held, and one transaction per trial update.

Optuna's own storage (5.0) reads all open trials with all their epochs again at every call, and commits every single
value in a transaction of its own.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb.models import (
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Table, select, update
from sqlalchemy.dialects import postgresql, sqlite

from search.ledger.database import engine_options
from search.ledger.lock import LOCKS, StudyLock


@dataclass
class TrialUpdate:
    """Values to be written to an open trial in one transaction."""

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    """By dotted name: the value in Optuna's internal representation, and its distribution.  Only params not yet set."""
    user_attrs: dict[str, Any] = field(default_factory=dict)
    """User attributes, as JSON types."""
    system_attrs: dict[str, Any] = field(default_factory=dict)
    """System attributes of samplers and pruners, as JSON types."""
    values: dict[int, float] = field(default_factory=dict)
    """Intermediate values by epoch."""
    ending: TrialState | None = None
    """State in which the update ends the trial; None leaves the trial open."""
    value: float | None = None
    """Value of a trial that ends as COMPLETE."""
    when: datetime = field(default_factory=lambda: datetime.now(UTC))
    """Time of the update.  Optuna (5.0) stores it in UTC and returns it in local time, both without a time zone."""


class LockedStorage(_CachedStorage):
    """Optuna's storage of a study in a database, with reads from memory while the study's lock is held.

    While the lock is held no other process writes, so that trials already read or written need not be read again.
    Otherwise everything that can change is read from the database, as by Optuna.  Reads may come from any thread.

    Attributes:
        lock: the study's lock.  If set, every write to a trial raises SupersededError unless the lock is held.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self.lock: StudyLock | None = None
        self._cached_studies: set[int] = set()

    def write(self, trial_id: int, trial_update: TrialUpdate) -> None:
        """Write to an open trial in one transaction; does nothing for an empty update.  May be repeated.

        Raises:
            UpdateFinishedTrialError: the trial has ended.
            SupersededError: another driver has taken the lock; nothing was written.
        """
        rows = rows_by_table(trial_update)
        if not (trial_update.ending or rows):
            return
        with self._invalidate_on_error(), self._backend.engine.begin() as connection:
            for table, table_rows in rows.items():
                upsert(connection, table, [{"trial_id": trial_id} | row for row in table_rows])
            if trial_update.ending is not None:
                ended = {"state": trial_update.ending, "datetime_complete": trial_update.when.replace(tzinfo=None)}
                is_open = (TrialModel.trial_id == trial_id, TrialModel.state == TrialState.RUNNING)
                updated = connection.execute(update(TrialModel.__table__).where(*is_open).values(ended)).rowcount
                self.check_trial_is_updatable(trial_id, TrialState.RUNNING if updated else trial_update.ending)
            # Last, while the transaction excludes other writers: an error here rolls back the writes above.
            self._check(connection, trial_id, ends=trial_update.ending is not None)
        self._update_cache(trial_id, trial_update)

    @contextmanager
    def _invalidate_on_error(self) -> Iterator[None]:
        """Discard the cache if a write fails, since the database may have committed the write."""
        try:
            yield
        except BaseException:
            self._cached_studies = set()
            raise

    def _check(self, connection: Connection, trial_id: int, ends: bool) -> None:
        """Raise if this driver has lost the lock, or if the trial had ended before this transaction."""
        query = select(TrialModel.state).where(TrialModel.trial_id == trial_id)
        if self.lock is not None:
            query = query.join(LOCKS, self.lock.row_filter()).with_for_update(read=True)
        state = connection.execute(query).scalar_one_or_none()
        if self.lock is not None and state is None:
            self.lock.mark_lost()
        if not ends:
            self.check_trial_is_updatable(trial_id, state)

    def _is_locked(self) -> bool:
        return self.lock is not None and self.lock.is_held()

    def _verify_lock(self) -> None:
        if self.lock is not None:
            with self._backend.engine.begin() as connection:
                self.lock.verify(connection)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial; discard the cache if Optuna's retry of a lost call has created a second trial."""
        self._verify_lock()
        with self._invalidate_on_error():
            trial_id = int(super().create_new_trial(study_id, template_trial))
        number = self._trial_id_to_study_id_and_number[trial_id][1]
        if len(self._studies[study_id].trials) != number + 1:
            self._cached_studies = set()
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        self.write(trial_id, TrialUpdate(params={param_name: (param_value_internal, distribution)}))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.write(trial_id, TrialUpdate(user_attrs={key: value}))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.write(trial_id, TrialUpdate(system_attrs={key: value}))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self.write(trial_id, TrialUpdate(values={step: intermediate_value}))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """Start or end a trial, then read it back, since RDBStorage sets its start and end times."""
        self._verify_lock()
        with self._invalidate_on_error():
            changed = super().set_trial_state_values(trial_id, state, values)
            trial = self._backend.get_trial(trial_id)
        with self._lock:
            if trial_id in self._trial_id_to_study_id_and_number:
                self._add_trials_to_cache(self._trial_id_to_study_id_and_number[trial_id][0], [trial])
        return bool(changed)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with self._lock:
            study_id, number = self._trial_id_to_study_id_and_number.get(trial_id, (-1, -1))
            if study_id in self._cached_studies and self._is_locked():
                return copy_trial(self._studies[study_id].trials[number])
        return super().get_trial(trial_id)

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        locked = self._is_locked()
        if locked and study_id in self._cached_studies:
            return
        super()._read_trials_from_remote_storage(study_id)
        self._cached_studies = {study_id} if locked else set()

    def _update_cache(self, trial_id: int, trial_update: TrialUpdate) -> None:
        with self._lock:
            if trial_id not in self._trial_id_to_study_id_and_number:
                return
            study_id, number = self._trial_id_to_study_id_and_number[trial_id]
            trial = copy_trial(self._studies[study_id].trials[number])  # other threads may read the original
            for name, (value, distribution) in trial_update.params.items():
                trial.params[name] = distribution.to_external_repr(value)
                trial.distributions[name] = distribution
            trial.user_attrs.update(json_round_trip(trial_update.user_attrs))
            trial.system_attrs.update(json_round_trip(trial_update.system_attrs))
            trial.intermediate_values.update(trial_update.values)
            if trial_update.ending is not None:
                trial.state, trial.value = trial_update.ending, trial_update.value
                trial.datetime_complete = trial_update.when.astimezone().replace(tzinfo=None)
            self._studies[study_id].trials[number] = trial


def open_storage(url: str) -> LockedStorage:
    """Open the storage at an SQLAlchemy address, and create Optuna's tables if they do not exist."""
    return LockedStorage(RDBStorage(url, engine_kwargs=engine_options(url)))


def rows_by_table(trial_update: TrialUpdate) -> dict[Table, list[dict[str, Any]]]:
    """Return the rows of an update by table of Optuna; without tables that get none."""
    to_stored = TrialIntermediateValueModel.intermediate_value_to_stored_repr
    params = [
        {"param_name": name, "param_value": value, "distribution_json": distribution_to_json(distribution)}
        for name, (value, distribution) in trial_update.params.items()
    ]
    values = [
        dict(zip(("step", "intermediate_value", "intermediate_value_type"), (step, *to_stored(value)), strict=True))
        for step, value in trial_update.values.items()
    ]
    final = [] if trial_update.value is None else [TrialValueModel.value_to_stored_repr(trial_update.value)]
    rows = {
        TrialParamModel: params,
        TrialUserAttributeModel: attribute_rows(trial_update.user_attrs),
        TrialSystemAttributeModel: attribute_rows(trial_update.system_attrs),
        TrialIntermediateValueModel: values,
        TrialValueModel: [{"objective": 0, "value": value, "value_type": kind} for value, kind in final],
    }
    return {model.__table__: model_rows for model, model_rows in rows.items() if model_rows}


def attribute_rows(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of user or system attributes."""
    return [{"key": key, "value_json": json.dumps(value)} for key, value in attributes.items()]


def upsert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows; update the rows that exist.  The first two columns are the key."""
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    key, changed = list(rows[0])[:2], list(rows[0])[2:]
    new = {name: insert.excluded[name] for name in changed}
    connection.execute(insert.on_conflict_do_update(index_elements=key, set_=new), rows)


def copy_trial(trial: FrozenTrial) -> FrozenTrial:
    """Return a copy of a trial whose dictionaries may be changed."""
    copied = copy.copy(trial)
    for name in ("_params", "_distributions", "_user_attrs", "_system_attrs", "intermediate_values"):
        setattr(copied, name, dict(getattr(trial, name)))
    return copied


def json_round_trip(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as the database would return them: tuples as lists, keys as text."""
    return {key: json.loads(json.dumps(value)) for key, value in attributes.items()}
