"""Write the description of a study."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete

from search.ledger.database import retry
from search.ledger.study_metadata import Confirmation, Constraint, StudyMetadata
from search.ledger.study_reader import StudyReader
from search.ledger.tables import EPOCHS, FAILURES, STUDIES, TRIALS
from search.ledger.transaction import READ_STUDY, Transaction, transaction


class MetadataWriter(StudyReader):
    """A study whose description may be written.  Every write may be repeated."""

    @contextmanager
    def _write(self) -> Iterator[Transaction]:
        """Begin a write; when it is stored, remember the trials that it has changed.

        If it fails, the next read asks the database, which may have stored it all the same.
        """
        was_fresh = self._is_fresh and self.is_locked
        try:
            with transaction(self._engine, self._study, self._lock) as write:
                yield write
        finally:
            with self._reading:  # another thread may have read the state before this write
                self._is_fresh = False
        if was_fresh and write.changed and write.seq == self._seq + 1:
            with self._reading:
                self._records |= write.changed
                self._seq, self._is_fresh = write.seq, True

    @retry
    def record_run(self, metadata: StudyMetadata, began: float | None = None) -> None:
        """Record the metadata of a run.

        A recorded identity and uid are kept, see `accept_changes`.  `resources`, `changes`, `constraint`,
        `confirmation` and `runs` are not written, `limit` is emptied, and `keep_checkpoints` never grows.

        Args:
            metadata: of the run.
            began: Unix seconds, added to `runs` unless it is there; None for a call that begins no run.
        """
        keys = (
            "study",
            "space",
            "title",
            "experiment",
            "allow_changed_batch",
            "budget",
            "max_hours",
            "max_gpu_hours",
            "reserved",
        )
        recorded = {key: getattr(metadata, key) for key in keys} | {"settings": dict(metadata.settings), "limit": ""}
        recorded["objectives"] = list(metadata.objectives)
        with self._write() as write:
            before = write.study_row()
            runs = before["metadata"].get("runs", [])
            recorded["runs"] = runs if began is None or began in runs else [*runs, began]
            recorded["keep_checkpoints"] = min(
                metadata.keep_checkpoints, before["metadata"].get("keep_checkpoints", metadata.keep_checkpoints)
            )
            values: dict[str, Any] = {"metadata": before["metadata"] | recorded}
            if not before["identity"]:
                values["identity"] = dict(metadata.identity)
            write.change_study(values)

    @retry
    def accept_changes(self, identity: Mapping[str, Any], changes: str, when: float) -> None:
        """Replace the identity and record the change; must be called before `record_run`.

        Args:
            identity: the new identity.
            changes: the differences as one line.
            when: Unix seconds.
        """
        ended = [record.number for record in self.trials() if not record.is_open]
        with self._write() as write:
            before = write.study_row()["metadata"]
            if any(change["when"] == when for change in before.get("changes", [])):
                return
            change = {"when": when, "changes": changes, "ended": ended, "settings": before.get("settings", {})}
            metadata = before | {"changes": [*before.get("changes", []), change]}
            write.change_study({"identity": dict(identity), "metadata": metadata})

    @retry
    def record_resources(self, resources: Mapping[str, float]) -> None:
        """Record the `cpus` and `gpus` of one trial."""
        self._change_metadata(resources=dict(resources))

    @retry
    def record_limit(self, limit: str) -> None:
        """Record the setting that ended a run before its trials were done, see `StudyMetadata.limit`."""
        self._change_metadata(limit=limit)

    @retry
    def record_constraint(self, constraint: Constraint) -> None:
        """Record which trials may be the best."""
        self._change_metadata(constraint=asdict(constraint))

    @retry
    def record_confirmation(self, confirmation: Confirmation) -> None:
        """Record the trial that --confirm has selected."""
        self._change_metadata(confirmation=asdict(confirmation))

    def _change_metadata(self, **values: Any) -> None:
        """Replace values of the metadata."""
        with self._write() as write:
            write.change_study({"metadata": write.study_row()["metadata"] | values})

    @retry
    def delete_study(self) -> None:
        """Delete the study from its database.  Does nothing if the study does not exist.

        Raises:
            SupersededError: another driver has taken the study over; nothing was deleted.
        """
        with self._engine.connect() as connection:
            if connection.execute(READ_STUDY, {"of_study": self._study}).first() is None:
                return
        with transaction(self._engine, self._study, self._lock) as write:
            for table in (EPOCHS, FAILURES, TRIALS):
                write.connection.execute(delete(table).where(table.c.study == self._study))
            write.connection.execute(delete(STUDIES).where(STUDIES.c.id == self._study))
