"""A study's database as the driver that holds the study sees it: read once, then kept in memory beside every write.

Optuna's own storage reads the open trials anew, with all their epochs, at every look, and waits for the disk once for
every single value.
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
    """What is written to an open trial at once, all of it or nothing."""

    params: dict[str, tuple[float, BaseDistribution]] = field(default_factory=dict)
    """Values by name, in Optuna's internal form, of settings that the trial lacks."""
    user_attrs: dict[str, Any] = field(default_factory=dict)
    """User attributes, as JSON types."""
    system_attrs: dict[str, Any] = field(default_factory=dict)
    """System attributes, as JSON types: what samplers and pruners remember."""
    values: dict[int, float] = field(default_factory=dict)
    """Intermediate values by epoch."""
    ending: TrialState | None = None
    """How the trial ends with this entry; None leaves it open."""
    value: float | None = None
    """The value of a trial that ends as COMPLETE."""
    when: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When this is written.  Optuna's tables have it in UTC, its trials in local time, both without a time zone."""


class LockedStorage(_CachedStorage):
    """Optuna's storage of a study in a database.

    While its lock is held, so that nobody else writes, what was read or written since then is answered from memory;
    otherwise everything that can change is read from the database, as Optuna does.

    Attributes:
        lock: of the study.  Once it is there, nothing is written after another driver has taken it.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self.lock: StudyLock | None = None
        self._cached_studies: set[int] = set()

    def write(self, trial_id: int, entry: TrialUpdate) -> None:
        """Write to an open trial in one transaction.

        Raises:
            UpdateFinishedTrialError: it has ended.
            SupersededError: another driver has taken the study over; nothing was written.
        """
        rows = rows_by_table(entry)
        if not (entry.ending or rows):
            return
        with self._invalidate_on_error(), self._backend.engine.begin() as connection:
            for table, lines in rows.items():
                upsert(connection, table, [{"trial_id": trial_id} | line for line in lines])
            if entry.ending is not None:
                ended = {"state": entry.ending, "datetime_complete": entry.when.replace(tzinfo=None)}
                open_still = (TrialModel.trial_id == trial_id, TrialModel.state == TrialState.RUNNING)
                done = connection.execute(update(TrialModel.__table__).where(*open_still).values(ended)).rowcount
                self.check_trial_is_updatable(trial_id, TrialState.RUNNING if done else entry.ending)
            # Last, when the database lets nobody else write: what was written above is taken back if it may not be.
            self._check(connection, trial_id, ends=entry.ending is not None)
        self._update_cache(trial_id, entry)

    @contextmanager
    def _invalidate_on_error(self) -> Iterator[None]:
        """Forget what is remembered if a write fails: it may have reached the database all the same."""
        try:
            yield
        except BaseException:
            self._cached_studies = set()
            raise

    def _check(self, connection: Connection, trial_id: int, ends: bool) -> None:
        """Raise unless a trial is open, or has just been ended, and the study is ours."""
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
        """Create a trial; if Optuna, repeating a call whose answer was lost, made two, both are known."""
        self._verify_lock()
        with self._invalidate_on_error():
            trial_id = int(super().create_new_trial(study_id, template_trial))
        known = self._trial_id_to_study_id_and_number[trial_id][1]
        if len(self._studies[study_id].trials) != known + 1:
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
        """Begin or end a trial, then read it: its time of day is set by the database's side."""
        self._verify_lock()
        with self._invalidate_on_error():
            done = super().set_trial_state_values(trial_id, state, values)
            trial = self._backend.get_trial(trial_id)
        with self._lock:
            if trial_id in self._trial_id_to_study_id_and_number:
                self._add_trials_to_cache(self._trial_id_to_study_id_and_number[trial_id][0], [trial])
        return bool(done)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        with self._lock:
            study_id, number = self._trial_id_to_study_id_and_number.get(trial_id, (-1, -1))
            if study_id in self._cached_studies and self._is_locked():
                return copy_trial(self._studies[study_id].trials[number])
        return super().get_trial(trial_id)

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        held = self._is_locked()
        if held and study_id in self._cached_studies:
            return
        super()._read_trials_from_remote_storage(study_id)
        self._cached_studies = {study_id} if held else set()

    def _update_cache(self, trial_id: int, entry: TrialUpdate) -> None:
        with self._lock:
            if trial_id not in self._trial_id_to_study_id_and_number:
                return
            study_id, number = self._trial_id_to_study_id_and_number[trial_id]
            trial = copy_trial(self._studies[study_id].trials[number])  # others may be reading the one that is there
            for name, (value, drawn) in entry.params.items():
                trial.params[name], trial.distributions[name] = drawn.to_external_repr(value), drawn
            trial.user_attrs.update(json_round_trip(entry.user_attrs))
            trial.system_attrs.update(json_round_trip(entry.system_attrs))
            trial.intermediate_values.update(entry.values)
            if entry.ending is not None:
                trial.state, trial.value = entry.ending, entry.value
                trial.datetime_complete = entry.when.astimezone().replace(tzinfo=None)
            self._studies[study_id].trials[number] = trial


def open_storage(url: str) -> LockedStorage:
    """The storage at an address."""
    return LockedStorage(RDBStorage(url, engine_kwargs=engine_options(url)))


def rows_by_table(entry: TrialUpdate) -> dict[Table, list[dict[str, Any]]]:
    """The rows of an entry, by Optuna's tables."""
    represent = TrialIntermediateValueModel.intermediate_value_to_stored_repr
    params = [
        {"param_name": name, "param_value": value, "distribution_json": distribution_to_json(drawn)}
        for name, (value, drawn) in entry.params.items()
    ]
    values = [
        dict(zip(("step", "intermediate_value", "intermediate_value_type"), (step, *represent(value)), strict=True))
        for step, value in entry.values.items()
    ]
    final = [] if entry.value is None else [TrialValueModel.value_to_stored_repr(entry.value)]
    rows = {
        TrialParamModel: params,
        TrialUserAttributeModel: attribute_rows(entry.user_attrs),
        TrialSystemAttributeModel: attribute_rows(entry.system_attrs),
        TrialIntermediateValueModel: values,
        TrialValueModel: [{"objective": 0, "value": value, "value_type": kind} for value, kind in final],
    }
    return {model.__table__: found for model, found in rows.items() if found}


def attribute_rows(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of attributes."""
    return [{"key": key, "value_json": json.dumps(fact)} for key, fact in facts.items()]


def upsert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows; one that is there, by the first two columns, gets the new values of the others."""
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    key, changed = list(rows[0])[:2], list(rows[0])[2:]
    new = {name: insert.excluded[name] for name in changed}
    connection.execute(insert.on_conflict_do_update(index_elements=key, set_=new), rows)


def copy_trial(trial: FrozenTrial) -> FrozenTrial:
    """A trial that can be added to without changing the original."""
    twin = copy.copy(trial)
    for name in ("_params", "_distributions", "_user_attrs", "_system_attrs", "intermediate_values"):
        setattr(twin, name, dict(getattr(trial, name)))
    return twin


def json_round_trip(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as they come back from the database."""
    return {key: json.loads(json.dumps(fact)) for key, fact in facts.items()}
