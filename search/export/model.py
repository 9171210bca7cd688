"""Export a trial's model into a folder, and register the best one in MLflow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

import fgseg
from fgseg import checkpoints
from fgseg.checkpoints.manifest import Manifest, read_weights, weights_blob
from fgseg.checkpoints.trial_files import CONFIG
from fgseg.config.errors import ConfigError
from fgseg.config.loading import Layer, build
from fgseg.config.settings import with_defaults
from fgseg.data.geometry import Geometry
from fgseg.inference.export import model_files, remove_leftovers, replace_files
from fgseg.inference.model_card import model_card
from fgseg.results import EpochResult
from fgseg.storage.store import absolute, is_local, join, open_store
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord
from search.ledger.study_metadata import StudyMetadata
from search.study.location import MODEL, REGISTERED, StudyLocation, public_address
from search.study.plan import Plan
from search.tracking.model_registry import REGISTER_S, register
from search.tracking.sync import started_metadata

ORIGIN = "origin.json"
"""File with study, trial and epoch of an exported model; a folder with equal content is not written again."""


def export(
    location: StudyLocation,
    ledger: Ledger,
    number: int | None = None,
    out: str | None = None,
    confirm: Callable[[], None] = lambda: None,
) -> tuple[str, bool]:
    """Export the model of a trial's selected epoch, unless the folder already holds it.

    Args:
        location: of the study.
        ledger: of the study; only read.
        number: of the trial; by default the best.
        out: address of a folder, which is replaced; by default `model` in the study's folder for the best trial, and
            `model-<number>` for a given trial.
        confirm: called before the folder is changed; may raise.

    Returns:
        The address of the folder, and whether it was written.

    Raises:
        ConfigError: no such trial, its weights were not kept, or the folder contains something else than a model.
        OSError: the folder cannot be written.
        ValueError: the weights are damaged.
    """
    metadata = started_metadata(location, ledger)
    record = choose(location, ledger, number)
    result, manifest = record.chosen, kept_weights(location, record)
    assert result is not None and manifest is not None
    store = location.trial_store(record.number)
    folder = absolute(out) if out else join(location.folder, MODEL if number is None else f"{MODEL}-{number:03d}")
    origin = model_origin(metadata, record.number, manifest)
    if read_origin(folder) == origin:
        remove_leftovers(folder)
        return folder, False
    run = build([Layer(f"trial {record.number}", with_defaults(metadata.trial_settings(record)))])
    text = model_card(*headline(metadata, record, result), run, result)
    weights, geometry = read_weights(store, manifest), Geometry.of(run.data)
    files = model_files(store.get(CONFIG), weights, geometry, text, run.data.window)
    replace_files(folder, files | {ORIGIN: json.dumps(origin, indent=1).encode()}, confirm)
    return folder, True


def choose(location: StudyLocation, ledger: Ledger, number: int | None) -> TrialRecord:
    """Return the trial to export; raises ConfigError if there is none, or its weights were not kept."""
    trials = {record.number: record for record in ledger.trials()}
    best = ledger.best()
    if number is None and best is None:
        raise ConfigError(f"study {location.study}: no trial has finished; continue the search first")
    record = best if number is None else trials.get(number)
    if record is None:
        raise ConfigError(
            f"--trial: study {location.study} has no trial {number}; it has {len(trials)}, counted from 0"
        )
    if kept_weights(location, record) is None:
        kept = [str(n) for n, r in trials.items() if kept_weights(location, r)]
        raise ConfigError(
            f"--trial: the weights of trial {record.number} ({record.state}) were not kept (--keep-checkpoints); "
            f"there are those of: {', '.join(kept) or 'none'}"
        )
    return record


def kept_weights(location: StudyLocation, record: TrialRecord) -> Manifest | None:
    """Return the newest checkpoint of a finished trial's selected epoch; None if unfinished or not kept."""
    if record.state is not State.COMPLETE or record.selected is None:
        return None
    return checkpoints.find(location.trial_store(record.number), record.selected)


def model_origin(metadata: StudyMetadata, number: int, manifest: Manifest) -> dict[str, Any]:
    """Return the content of ORIGIN, which identifies an exported model."""
    return {
        "study": metadata.study,
        "uid": metadata.uid,
        "trial": number,
        "epoch": manifest.epoch,
        "weights": weights_blob(manifest).sha256,
        "version": fgseg.__version__,
    }


def read_origin(folder: str) -> dict[str, Any]:
    """Read ORIGIN of an exported model; empty if the folder is empty.  Raises ConfigError for other content."""
    store = open_store(folder)
    if not store.list() and not store.folders() and not (is_local(folder) and Path(folder).is_file()):
        return {}
    try:
        content: dict[str, Any] = json.loads(store.get(ORIGIN))
    except (OSError, ValueError):
        raise ConfigError(f"--out: {folder} is no exported model, and is not replaced; name another folder") from None
    return content


def headline(metadata: StudyMetadata, record: TrialRecord, result: EpochResult) -> tuple[str, str]:
    """Return title and origin of a model for its Hugging Face model card."""
    origin = (
        f"It is epoch {result.epoch} of trial {record.number} of the study `{metadata.study}`, of the family "
        f"{metadata.title} (`{metadata.space}`), searched by fgsearch {fgseg.__version__}."
    )
    return f"{metadata.study}, trial {record.number}", origin


def export_best_trial(plan: Plan, ledger: Ledger, console: Console, stop: Callable[[], bool]) -> None:
    """Export the best trial's model if it changed, and register it in MLflow.

    Args:
        plan: of a study with a finished trial.
        ledger: of the study, locked by this process.
        console: shows a status line during the registration.
        stop: called several times a second during the registration; True cancels it.

    Raises:
        ConfigError, OSError, ValueError: as `export`.
        SupersededError: another driver has taken the study over; the model stays as it is.
        TrackingError: MLflow could not be reached or refused the model.
    """
    folder, _ = export(plan.location, ledger, confirm=ledger.check_lock)
    if plan.search.register_model:
        with console.status("registering the model in MLflow"):
            register_once(plan.location, folder, stop)


def register_once(location: StudyLocation, folder: str, stop: Callable[[], bool]) -> None:
    """Register the model in a folder unless its file REGISTERED names this MLflow; raises TrackingError."""
    note, address = open_store(folder), public_address(location.tracking_uri)
    if REGISTERED in note.list() and note.get(REGISTERED).decode() == address:
        return
    register(location.tracking_uri, read_origin(folder), folder, REGISTER_S, stop)
    note.remove_temporary()  # of a run that was killed
    note.put(REGISTERED, address.encode())
