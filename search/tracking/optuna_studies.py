"""Show the studies of a storage in optuna-dashboard: `<storage>/optuna.db` holds each as a study of Optuna.

The file is a view of the ledgers: it may be deleted, and `search.sync` writes it anew.
"""

import math
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgseg.config.errors import FaultError, one_line
from fgseg.results import format_iou
from fgseg.storage.store import is_local
from fgseg.visual.overlays import read_overlays
from search.ledger.records import State, TrialRecord
from search.ledger.study_metadata import StudyMetadata
from search.sampling.distributions import distributions, recorded_ranges
from search.study.location import StudyLocation
from search.study.objective import DEFAULT, value_of
from search.study.space import Range
from search.tracking.client import create_database
from search.tracking.run_schema import LedgerReader, Phase
from search.tracking.tracker import BackgroundWriter

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

DATABASE = "optuna.db"
"""Name of the file in the storage."""
ARTIFACTS = "optuna-artifacts"
"""Folder in the storage with the overlays of trials; `optuna-dashboard --artifact-dir` shows them."""
NUMBER = "trial"
"""Attribute with a trial's number in the ledger; Optuna counts the trials in the order in which they ended."""


class OptunaStudyWriter:
    """Writes one study; a `Writer` for a `BackgroundWriter`.

    Args:
        ledger: of the study.
        location: of the study, in a storage on a disk.
        metadata: of the study.
        pause: called before each transaction.
    """

    def __init__(
        self,
        ledger: LedgerReader,
        location: StudyLocation,
        metadata: StudyMetadata,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._pause = pause
        self._ledger, self._location = ledger, location
        self._ranges = recorded_ranges(metadata)
        self._objectives = metadata.objectives
        self._study = open_study(Path(location.storage), location.study, metadata.objectives)
        self._written = {trial.user_attrs[NUMBER] for trial in self._study.get_trials(deepcopy=False)}

    def write_all(self, phase: Phase) -> None:
        """Write every ended trial that is lacking."""
        self._write(self._ledger.trials())

    def write_changes(self, numbers: set[int]) -> None:
        """Write those of these trials that have ended."""
        self._write([self._ledger.trial(number) for number in numbers])

    def write_file(self, name: str, data: bytes) -> None:
        """Do nothing: optuna-dashboard shows no other files."""

    def _write(self, records: Sequence[TrialRecord]) -> None:
        """Write those of these trials that have ended and are lacking, in the order in which they have ended."""
        lacking = [record for record in records if not record.is_open and record.number not in self._written]
        for record in sorted(lacking, key=lambda record: record.ended_seq or 0):
            self._write_trial(record)

    def _write_trial(self, record: TrialRecord) -> None:
        """Write an ended trial with its epochs, its note and its overlays."""
        self._pause()
        self._study.add_trial(self._waiting_trial(record))
        self._pause()
        trial = self._study.ask()  # that one: no other trial waits
        self._pause()
        self._add_note(trial, record)
        self._add_overlays(trial, record)
        self._pause()
        if record.chosen is not None:
            self._study.tell(trial, [value_of(record.chosen, name) for name in self._objectives])
        else:
            self._study.tell(trial, state=optuna_state(record.state))
        self._written.add(record.number)

    def _waiting_trial(self, record: TrialRecord) -> "FrozenTrial":
        """Return a trial with its point, its epochs and its attributes, which Optuna stores in one transaction."""
        from optuna.trial import TrialState, create_trial

        known = {name: spec for name, spec in self._ranges.items() if name in record.params}
        point = {name: spec.position(record.params[name]) for name, spec in known.items()}
        values = {epoch.epoch: value_of(epoch, self._objectives[0]) for epoch in record.epochs}
        return create_trial(
            state=TrialState.WAITING,
            params=point,
            distributions=distributions({name: containing(spec, point[name]) for name, spec in known.items()}),
            # Optuna shows no epochs of trials with two objectives.
            intermediate_values={epoch: value for epoch, value in values.items() if math.isfinite(value)}
            if len(self._objectives) == 1
            else {},
            user_attrs=attributes(record),
        )

    def _add_note(self, trial: "Trial", record: TrialRecord) -> None:
        """Attach the IoU of every class, or the reason of the end, where optuna-dashboard is installed."""
        if find_spec("optuna_dashboard") is not None:
            from optuna_dashboard import save_note

            save_note(trial, note(record))

    def _add_overlays(self, trial: "Trial", record: TrialRecord) -> None:
        """Attach the overlays of a complete trial."""
        from optuna.artifacts import FileSystemArtifactStore, upload_artifact

        if record.state is not State.COMPLETE:
            return
        folder = Path(self._location.storage) / ARTIFACTS
        folder.mkdir(exist_ok=True)
        store = FileSystemArtifactStore(folder)
        with tempfile.TemporaryDirectory(prefix="fgsearch-") as temporary:
            for name, data in read_overlays(self._location.trial_store(record.number)).items():
                path = Path(temporary, name)
                path.write_bytes(data)
                upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial)


class OptunaTracker(BackgroundWriter):
    """Writes a study for optuna-dashboard from one background thread; a `TrialListener`.

    A failure is logged nowhere: the next run of the study, or `search.sync`, writes what is lacking.
    """

    def __init__(
        self, ledger: LedgerReader, location: StudyLocation, metadata: StudyMetadata, pause: Callable[[], None]
    ) -> None:
        import optuna  # noqa: F401  here, since two threads that import a library at once can see half of it

        super().__init__(lambda: OptunaStudyWriter(ledger, location, metadata, pause), lambda error: None)

    def on_attempt(self, record: TrialRecord) -> None:
        """Do nothing: only ended trials are shown."""

    def on_epoch(self, record: TrialRecord) -> None:
        """Do nothing: only ended trials are shown."""

    def on_trial_end(self, record: TrialRecord) -> None:
        """Schedule the trial."""
        self.notify(record.number)

    def on_note(self, number: int | None, text: str) -> None:
        """Do nothing: these notes are about a run."""


def open_study(storage: Path, name: str, objectives: Sequence[str] = DEFAULT) -> "Study":
    """Open a study in the storage's file; its charts name the objectives, the metrics that it maximises.

    A study with a trial whose writing was interrupted begins anew.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", message=".*set_metric_names is experimental")
    address = f"sqlite:///{storage / DATABASE}"
    # Optuna creates tables, then their indices: killed in between, it never adds those of a table that exists.
    create_database(address, lambda whole: optuna.storages.RDBStorage(whole).engine.dispose())
    database = note_storage(address)
    options: dict[str, Any] = {"study_name": name, "storage": database, "directions": ["maximize"] * len(objectives)}
    study = optuna.create_study(**options, sampler=optuna.samplers.RandomSampler(seed=0), load_if_exists=True)
    if any(not trial.state.is_finished() for trial in study.get_trials(deepcopy=False)):
        optuna.delete_study(study_name=name, storage=database)
        study = optuna.create_study(**options, sampler=optuna.samplers.RandomSampler(seed=0))
    study.set_metric_names(list(objectives))
    return study


class UnsyncedConnection(sqlite3.Connection):
    """A connection that does not wait for the disk, which would delay the ledger's writes.

    What a killed process has committed stays; after a power cut the file may be damaged, see `errors_as_faults`.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.execute("PRAGMA synchronous = OFF")


def note_storage(address: str) -> "RDBStorage":
    """Return a storage of Optuna in which writing a note takes the same time for every number of trials.

    `save_note` reads the notes of all trials to find the last version of one; here every trial gets one note, once.
    """
    from optuna.storages import RDBStorage

    class NoteStorage(RDBStorage):
        """Finds no earlier notes."""

        def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
            """Return no attributes of a study: only notes are kept there."""
            return {}

    return NoteStorage(address, engine_kwargs={"connect_args": {"timeout": 60, "factory": UnsyncedConnection}})


def optuna_state(state: State) -> Any:
    """Return Optuna's state of an ended trial."""
    from optuna.trial import TrialState

    return TrialState[state.name]


def containing(spec: Range, value: float) -> Range:
    """Return a range that is wide enough for a value: a trial may be older than an accepted change of the space."""
    return spec.model_copy(update={"low": min(spec.low, value), "high": max(spec.high, value)})


def attributes(record: TrialRecord) -> dict[str, Any]:
    """Return the attributes of a trial: its number in the ledger, the IoU of every class, its duration."""
    last = record.chosen or (record.epochs[-1] if record.epochs else None)
    iou = {f"val/iou/{key}": value for key, value in last.iou.items() if math.isfinite(value)} if last else {}
    minutes = {} if record.ended is None else {"minutes": round((record.ended - record.started) / 60, 2)}
    return {NUMBER: record.number} | iou | minutes


def note(record: TrialRecord) -> str:
    """Return the note of a trial, Markdown: the IoU of every class, or why it was stopped or failed."""
    if record.chosen is None:
        return f"Trial {record.number:03d} is {record.state}: {record.reason}"
    rows = "\n".join(f"| {key} | {format_iou(value)} |" for key, value in record.chosen.iou.items())
    score = f"| **mIoU** | **{format_iou(record.chosen.miou)}** |"
    return f"Trial {record.number:03d}, epoch {record.chosen.epoch}\n\n| class | IoU |\n|---|---|\n{rows}\n{score}"


def can_show(location: StudyLocation) -> bool:
    """Return whether the storage can hold the file: optuna-dashboard reads no buckets."""
    return is_local(location.storage)


@contextmanager
def errors_as_faults(location: StudyLocation) -> Iterator[None]:
    """Convert every exception about the storage's file to a FaultError with what to do: the file may be deleted."""
    try:
        yield
    except Exception as error:  # Optuna and SQLAlchemy have no common one for a file that is damaged or in use
        path = Path(location.storage) / DATABASE
        reason = one_line(error, with_type=True)
        raise FaultError(
            f"{path}: {reason}; delete that file, which search.sync writes anew, and run this again"
        ) from None


def forget_study(location: StudyLocation) -> None:
    """Delete a study from the storage's file, with its overlays; does nothing if it is not there.

    Raises:
        FaultError: the file is damaged or in use; the message says what to do.
    """
    import optuna
    from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta
    from optuna.artifacts.exceptions import ArtifactNotFound

    path = Path(location.storage) / DATABASE
    if not (can_show(location) and path.exists()):
        return
    with errors_as_faults(location), suppress(KeyError):
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        store = FileSystemArtifactStore(Path(location.storage) / ARTIFACTS)
        for trial in optuna.load_study(study_name=location.study, storage=storage).get_trials(deepcopy=False):
            for artifact in get_all_artifact_meta(trial, storage=storage):
                with suppress(ArtifactNotFound):  # the folder may be deleted
                    store.remove(artifact.artifact_id)
        optuna.delete_study(study_name=location.study, storage=storage)
