"""What the ledger records about a study as a whole.  Importing this file imports neither Optuna nor a database."""

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
    """A study's description.  Every field is empty, or 0, until the first driver has recorded it."""

    study: str = ""
    space: str = ""
    title: str = ""
    """The approach family's name as shown in tables."""
    experiment: str = ""
    """MLflow experiment: the config's name when the study began."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Resolved dotted settings of the start point."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """What makes the study this study: version, settings, space, sampler, the data's fingerprint (JSON types)."""
    uid: str = ""
    """Unique id, which tells studies of one name apart on a shared MLflow server."""
    budget: int = 0
    """Trials that the latest run was to reach."""
    allow_changed_batch: bool = False
    """Whether a trial whose batch was halved may be the best."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """`cpus` and `gpus` of each trial in the latest run."""
    changes: Sequence[Mapping[str, Any]] = ()
    """Changes of the identity that were accepted: when, changes, ended (trial numbers), settings (until then)."""

    @property
    def epochs(self) -> int:
        """Full length of a trial."""
        return int(self.settings.get("train.epochs", 1))

    def settings_at(self, number: int) -> dict[str, Any]:
        """Return the dotted settings that held when a trial ended, or hold now; without the trial's own point."""
        held = (change["settings"] for change in self.changes if number in change["ended"])
        return dict(next(held, self.settings))

    def trial_settings(self, record: "TrialRecord") -> dict[str, Any]:
        """Return the dotted settings of one trial, as `Plan.trial_settings` did when the trial ended."""
        own = self.settings_at(record.number) | record.params | record.overrides
        return own | {"train.seed": own["train.seed"] + record.seed}


class StudyMetadataRows:
    """Reads and writes the metadata of a study as user attributes of its Optuna study."""

    def __init__(self, study: "Study") -> None:
        self._study = study

    @property
    @retry
    def metadata(self) -> StudyMetadata:
        """The metadata as the database, or the memory of the driver that holds the lock, has it."""
        stored = self._study.user_attrs
        if "card" in stored:
            name = self._study.study_name
            raise LedgerError(f"study {name} was written by an older version of fgsearch; begin a new study")
        same = ("identity", "uid", "budget", "resources", "changes")
        return StudyMetadata(**stored.get("info", {}), **{key: stored[key] for key in same if key in stored})

    @retry
    def record_run(self, metadata: StudyMetadata) -> None:
        """Record what a run knows about its study; requires the lock.

        An identity once recorded stays (see `accept_changes`), as does the uid; `resources` and `changes` are not
        written here.
        """
        if not self.metadata.identity:
            self._study.set_user_attr("uid", uuid.uuid4().hex)
            self._study.set_user_attr("identity", dict(metadata.identity))
        shown = ("study", "space", "title", "experiment", "allow_changed_batch")
        info = {key: getattr(metadata, key) for key in shown} | {"settings": dict(metadata.settings)}
        self._study.set_user_attr("info", info)
        self._study.set_user_attr("budget", metadata.budget)

    @retry
    def accept_changes(self, identity: Mapping[str, Any], changes: str, when: float) -> None:
        """Replace the identity, and note what changed; requires the lock, and comes before `record_run`.

        Args:
            identity: the new one.
            changes: the differences as one line.
            when: unix seconds.
        """
        ended = [t.number for t in self._study.get_trials(deepcopy=False) if t.state.is_finished()]
        before = self.metadata
        change = {"when": when, "changes": changes, "ended": ended, "settings": dict(before.settings)}
        self._study.set_user_attr("changes", [*before.changes, change])
        self._study.set_user_attr("identity", dict(identity))

    @retry
    def record_resources(self, resources: Mapping[str, float]) -> None:
        """Record what each trial gets of the machine, by `cpus` and `gpus`."""
        self._study.set_user_attr("resources", dict(resources))

    @retry
    def delete_study(self) -> None:
        """Remove the study from its database; requires the lock.  A study that is gone is no error."""
        import optuna

        with suppress(KeyError):
            optuna.delete_study(study_name=self._study.study_name, storage=self._study._storage)
