"""The metadata of a study in the ledger.  Importing this module imports neither Optuna nor a database driver."""

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from search.ledger.database import LedgerError, retry

if TYPE_CHECKING:
    from optuna.study import Study

    from search.ledger.records import TrialRecord


@dataclass(frozen=True)
class StudyMetadata:
    """Description of a study.  Every field is empty, or 0, until the first driver has recorded it."""

    study: str = ""
    space: str = ""
    title: str = ""
    """Name of the family in tables."""
    experiment: str = ""
    """MLflow experiment: name of the config at the first run."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the start point by dotted name."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Version, settings, space, sampler and the data's fingerprint, as JSON types; must be the same in every run."""
    uid: str = ""
    """Unique id, which distinguishes studies of the same name on a shared MLflow server."""
    budget: int = 0
    """Number of trials that the latest run was to reach."""
    allow_changed_batch: bool = False
    """Whether a trial whose batch was halved may be the best."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """`cpus` and `gpus` of one trial in the latest run."""
    changes: Sequence[Mapping[str, Any]] = ()
    """Accepted changes of the identity, oldest first: `when` (Unix seconds), `changes` (one line), `ended` (numbers of
    the trials that had ended), `settings` (before the change)."""

    @property
    def epochs(self) -> int:
        """Full length of a trial, in epochs."""
        return int(self.settings.get("train.epochs", 1))

    def settings_at(self, number: int) -> dict[str, Any]:
        """Return the settings at the end of a trial, or the current ones; by dotted name, without the trial's point."""
        recorded = (change["settings"] for change in self.changes if number in change["ended"])
        return dict(next(recorded, self.settings))

    def trial_settings(self, record: "TrialRecord") -> dict[str, Any]:
        """Return all settings of a trial by dotted name, as `Plan.trial_settings` returned when the trial ended."""
        own = self.settings_at(record.number) | record.params | record.overrides
        return own | {"train.seed": own["train.seed"] + record.seed}


class StudyMetadataRows:
    """Reads and writes the metadata of a study as user attributes of its Optuna study."""

    def __init__(self, study: "Study") -> None:
        self._study = study

    @property
    @retry
    def metadata(self) -> StudyMetadata:
        """Metadata, read from memory while this process holds the lock, else from the database.

        Raises LedgerError for a study of an older version of fgsearch.
        """
        stored = self._study.user_attrs
        if "card" in stored:  # the attribute that older versions wrote in place of `info`
            name = self._study.study_name
            raise LedgerError(f"study {name} was written by an older version of fgsearch; begin a new study")
        own_keys = ("identity", "uid", "budget", "resources", "changes")
        return StudyMetadata(**stored.get("info", {}), **{key: stored[key] for key in own_keys if key in stored})

    @retry
    def record_run(self, metadata: StudyMetadata) -> None:
        """Record the metadata of a run; requires the lock, may be repeated.

        A recorded identity and uid are kept, see `accept_changes`.  `resources` and `changes` are not written.
        """
        if not self.metadata.identity:
            self._study.set_user_attr("uid", uuid.uuid4().hex)
            self._study.set_user_attr("identity", dict(metadata.identity))
        info_keys = ("study", "space", "title", "experiment", "allow_changed_batch")
        info = {key: getattr(metadata, key) for key in info_keys} | {"settings": dict(metadata.settings)}
        self._study.set_user_attr("info", info)
        self._study.set_user_attr("budget", metadata.budget)

    @retry
    def accept_changes(self, identity: Mapping[str, Any], changes: str, when: float) -> None:
        """Replace the identity and record the change; requires the lock, and must be called before `record_run`.

        Args:
            identity: the new identity.
            changes: the differences as one line.
            when: Unix seconds.
        """
        ended = [t.number for t in self._study.get_trials(deepcopy=False) if t.state.is_finished()]
        before = self.metadata
        change = {"when": when, "changes": changes, "ended": ended, "settings": dict(before.settings)}
        self._study.set_user_attr("changes", [*before.changes, change])
        self._study.set_user_attr("identity", dict(identity))

    @retry
    def record_resources(self, resources: Mapping[str, float]) -> None:
        """Record the `cpus` and `gpus` of one trial; requires the lock."""
        self._study.set_user_attr("resources", dict(resources))

    @retry
    def delete_study(self) -> None:
        """Delete the study from its database; requires the lock.  Does nothing if the study does not exist."""
        import optuna

        with suppress(KeyError):
            optuna.delete_study(study_name=self._study.study_name, storage=self._study._storage)
