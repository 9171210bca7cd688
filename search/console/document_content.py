"""Fill the documents of `--json` from plans, ledgers and data sets."""

import time
from contextlib import closing

from rich.console import Console

from fgseg.config.errors import ConfigError
from fgseg.config.settings import DataConfig
from fgseg.data import FrameSet, open_reader
from fgseg.labels import LabelSet
from fgseg.storage.store import absolute, is_local
from search.console.data_picture import save_picture
from search.console.decoding import read_splits
from search.console.documents import (
    DataDocument,
    DriverDocument,
    PlanDocument,
    SpaceDocument,
    SplitDocument,
    StatusDocument,
    StudyDocument,
    TimeDocument,
    TrialDocument,
)
from search.console.forecast import left_of
from search.console.study_status import expected_end, trial_time
from search.ledger.catalog import find_ledger, open_ledger, study_names
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord, count_ended
from search.ledger.study_metadata import StudyMetadata
from search.ledger.study_reader import confirmed
from search.ledger.time_used import TimeUsed, time_used
from search.ledger.untrained import untrained_of
from search.study.config import SearchConfig
from search.study.location import StudyLocation, normal_ledger, public_address
from search.study.plan import Plan
from search.study.resources import describe_mps
from search.study.space import list_spaces, load_space


def space_documents() -> list[SpaceDocument]:
    """Describe every search space."""
    spaces = [load_space(name, DataConfig()) for name in list_spaces()]
    return [SpaceDocument(space=s.name, title=s.title, searched=s.search) for s in spaces]


def study_documents(search: SearchConfig) -> list[StudyDocument]:
    """Describe the studies of the shared ledger, else of the storage; raises ConfigError if there is none."""
    shared = normal_ledger(search.ledger_url) if search.ledger_url else None
    if shared:
        from search.ledger.database import check_database

        check_database(shared)
    elif not is_local(search.storage):
        raise ConfigError("--storage: s3:// holds files only; give --ledger-url, whose studies are listed")
    storage = absolute(search.storage)
    names = study_names(storage, shared)
    if not names:
        flag = "--ledger-url" if shared else "--storage"
        raise ConfigError(f"{flag}: no studies in {public_address(shared or storage)}; run a search, or name another")
    return [study_document(StudyLocation(storage, name, "", shared)) for name in names]


def study_document(location: StudyLocation) -> StudyDocument:
    """Describe a study in a list."""
    from search.ledger.database import LedgerError

    try:
        with closing(Ledger(location.ledger_url, location.study)) as ledger:  # a server has a limit of connections
            records, metadata = ledger.trials(), ledger.metadata
            best = ledger.best(records)
    except (LedgerError, LookupError):
        return StudyDocument(study=location.study, trials=None, best_trial=None, objectives=[], metrics={})
    return StudyDocument(
        study=location.study,
        trials={state: sum(r.state is state for r in records) for state in State},
        best_trial=best and best.number,
        objectives=list(metadata.objectives),
        metrics=best.metrics() if best else {},
    )


def plan_document(plan: Plan) -> PlanDocument:
    """Describe what a plan would run; the plan must have passed `check_plan`."""
    ledger = find_ledger(plan.location)
    records = ledger.trials() if ledger else []
    ended = count_ended(records)
    return PlanDocument(
        study=plan.study,
        space=plan.space.name,
        title=plan.space.title,
        storage=plan.location.folder,
        ledger_url=public_address(plan.location.ledger_url),
        tracking_uri=public_address(plan.location.tracking_uri),
        exists=ledger is not None,
        new_trials=max(0, plan.search.search_trials - len(records)),
        repeats=plan.search.repeats,
        open_trials=len(records) - ended,
        ended_trials=ended,
        settings=plan.settings.flat(),
        search=plan.search.model_dump(exclude={"tracking_uri", "storage", "ledger_url"}),
        searched=plan.space.search,
        gpu_sharing=describe_mps(plan.search),
        data=data_document(plan.settings.data),
    )


def data_document(cfg: DataConfig) -> DataDocument:
    """Read training and validation frames, as a run would, and describe them; raises ConfigError.

    A data set of the hub is not read, since a dry run downloads nothing.
    """
    if open_reader(cfg).remote:
        return DataDocument(splits={}, picture=None, note="not read, since a dry run downloads nothing")
    splits = read_splits(cfg, ("train", "val"), Console(stderr=True))
    found = {name: split_document(frames, cfg.label_set()) for name, frames in splits.items()}
    return DataDocument(splits=found, picture=str(save_picture(cfg, splits)), note="")


def split_document(frames: FrameSet, classes: LabelSet) -> SplitDocument:
    """Describe the frames of a split."""
    pixels = frames.pixels.sum(0) / max(1, frames.pixels.sum())
    return SplitDocument(
        frames=len(frames),
        pixel_share={c.key: float(pixels[c.label]) for c in classes.classes},
        class_frames={c.key: int((frames.pixels[:, c.label] > 0).sum()) for c in classes.classes},
    )


def status_document(location: StudyLocation) -> StatusDocument:
    """Describe the state of a study; raises ConfigError if there is none of this name."""
    ledger = open_ledger(location)
    records, holder, metadata = ledger.trials(), ledger.holder(), ledger.metadata
    untrained, duration, now = untrained_of(location, metadata), trial_time(records), time.time()
    left, expected = expected_end(metadata, records, now) if holder else (None, None)
    best, is_confirmed = ledger.best(records), confirmed(records, metadata) is not None
    return StatusDocument(
        study=location.study,
        space=metadata.space,
        tracking_uri=public_address(location.tracking_uri),
        driver=DriverDocument(host=holder.name, pid=holder.pid) if holder else None,
        budget=metadata.budget,
        epochs=metadata.epochs,
        objectives=list(metadata.objectives),
        floors=dict(metadata.constraint.floors),
        time=time_document(metadata, time_used(metadata, records, now if holder else None)),
        seconds_left=left,
        forecast_trials=expected and expected.trials,
        trial_seconds=duration and duration.total,
        training_seconds=duration and duration.training,
        best_trial=best and best.number,
        confirmation=metadata.confirmation if is_confirmed else None,
        checkpoint=untrained and untrained.metrics(),
        trials=[trial_document(record) for record in records],
    )


def time_document(metadata: StudyMetadata, used: TimeUsed) -> TimeDocument:
    """Describe the time of a study."""
    limits = (metadata.max_hours, used.hours), (metadata.max_gpu_hours, used.gpu_hours)
    hours_left, gpu_hours_left = (None if limit is None else left_of(limit, spent) for limit, spent in limits)
    return TimeDocument(
        hours=used.hours, hours_left=hours_left, gpu_hours=used.gpu_hours, gpu_hours_left=gpu_hours_left
    )


def trial_document(record: TrialRecord) -> TrialDocument:
    """Describe a trial."""
    return TrialDocument(
        trial=record.number,
        state=record.state,
        attempt=record.attempt,
        epochs=len(record.epochs),
        params=record.params,
        metrics=record.metrics(),
        reason=record.reason,
    )
