"""What the ledger holds about a study as a whole, as user attributes of the Optuna study."""

import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import optuna
from optuna.study import Study

from search.ledger.database import retry


class StudyMetadataRows:
    """Facts of a study; every one is empty, or 0, until the first driver has written it down."""

    def __init__(self, study: Study) -> None:
        self._study = study

    @retry
    def record_run(self, identity: Mapping[str, Any], info: Mapping[str, Any], budget: int) -> None:
        """Record what this run knows (JSON types), to be called with the lock held; an identity once recorded stays.

        Args:
            identity: what makes the study this study.
            card: how the study presents itself to people.
            budget: trials of the whole study.
        """
        if not self.identity:
            self._study.set_user_attr("uid", uuid.uuid4().hex)
            self._study.set_user_attr("identity", dict(identity))
        self._study.set_user_attr("card", dict(info))
        self._study.set_user_attr("budget", budget)

    @retry
    def accept_changes(self, identity: Mapping[str, Any], changes: str, when: float) -> None:
        """Replace the identity, keeping a note of what changed and when (seconds since 1970).

        To be called before `write_down`: the settings that are still those of before hold for the trials that ended.
        """
        ended = [t.number for t in self._study.get_trials(deepcopy=False) if t.state.is_finished()]
        change = {"when": when, "changes": changes, "ended": ended, "settings": self.info.get("settings", {})}
        noted = [*self._attribute("changes", []), change]
        self._study.set_user_attr("changes", noted)
        self._study.set_user_attr("identity", dict(identity))

    @retry
    def delete_study(self) -> None:
        """Remove the study from its database, to be called with the lock held; one that is gone is no error."""
        with suppress(KeyError):
            optuna.delete_study(study_name=self._study.study_name, storage=self._study._storage)

    @retry
    def record_resources(self, resources: Mapping[str, float]) -> None:
        """Record what each trial gets of the machine, by `cpus` and `gpus`."""
        self._study.set_user_attr("resources", dict(resources))

    @property
    def resources(self) -> dict[str, float]:
        """What each trial got in the latest run, by `cpus` and `gpus`."""
        return dict(self._attribute("resources", {}))

    @property
    def identity(self) -> dict[str, Any]:
        """What the study was begun with, or what has been accepted since."""
        return dict(self._attribute("identity", {}))

    @property
    def uid(self) -> str:
        """Tells this study from others of its name, on an MLflow server that several people share."""
        return str(self._attribute("uid", ""))

    @property
    def info(self) -> dict[str, Any]:
        """How the study presents itself: study, space, title, experiment, settings."""
        return dict(self._attribute("card", {}))

    def settings_of(self, number: int) -> dict[str, Any]:
        """The dotted settings that held when a trial ended, or hold now; its own point left out."""
        for change in self._attribute("changes", []):
            if number in change["ended"]:
                return dict(change["settings"])
        return dict(self.info.get("settings", {}))

    @property
    def budget(self) -> int:
        """Trials that the latest run was to reach."""
        return int(self._attribute("budget", 0))

    @retry
    def _attribute(self, name: str, default: Any) -> Any:
        return self._study.user_attrs.get(name, default)
