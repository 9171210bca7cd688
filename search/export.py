# PYTHON_ARGCOMPLETE_OK
"""Export a trial as an ordinary Transformers folder: `python -m search.export --study NAME --storage DIR`."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import fgseg
from fgseg.checkpoints.manifest import Manifest, list_manifests, read_weights, weights_blob
from fgseg.checkpoints.trial_files import CONFIG
from fgseg.cli import MISTAKE
from fgseg.config.errors import ConfigError
from fgseg.config.loading import Layer, build
from fgseg.inference.export import model_files, replace_files
from fgseg.inference.model_card import model_card
from fgseg.results import EpochResult, select_epoch
from fgseg.storage.store import absolute, is_local, join, open_store
from search.cli.options import Parser, add_location_options, location_from
from search.console.run_summary import study_command
from search.ledger.catalog import open_ledger
from search.ledger.database import LedgerError
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialRecord
from search.study.location import MODEL, REGISTERED, StudyLocation, public_address
from search.study.plan import Plan
from search.tracking.client import TrackingError
from search.tracking.model_registry import REGISTER_S, register
from search.tracking.run_schema import StudyCard, settings_of
from search.tracking.sync import card_of

DONE, FAULT = 0, 1
ORIGIN = "origin.json"
"""Says of which study, trial and epoch the model is; what says the same is not exported again."""


def export(
    location: StudyLocation, ledger: Ledger, number: int | None = None, out: str | None = None
) -> tuple[str, bool]:
    """Export a trial's model, the epoch that stands for it, unless that is what the folder holds already.

    Args:
        place: of the study.
        ledger: its books, which are only read.
        number: the trial; by default the best.
        out: the address of a folder, which is replaced; by default, in the study's, `model` for the best and
            `model-<number>` for a trial that was named.

    Returns:
        Its address, and whether it was written.

    Raises:
        ConfigError: no such trial, or none of which the weights were kept; a folder that is no exported model.
        OSError: the folder cannot be written.
        ValueError: the weights are damaged.
    """
    info = card_of(ledger, location)
    record = choose(location, ledger, number)
    result, manifest = selected(ledger, record), kept_weights(location, ledger, record)
    assert manifest is not None
    store = open_store(trial_folder(location, record))
    folder = absolute(out) if out else join(location.folder, MODEL if number is None else f"{MODEL}-{number:03d}")
    origin = describe(info, record.number, manifest)
    if read_origin(folder) == origin:
        return folder, False
    run = build([Layer(f"trial {record.number}", settings_of(ledger)(record))])
    text = model_card(*headline(info, record, result), run, result)
    size = (run.data.height, run.data.width)
    files = model_files(store.get(CONFIG), read_weights(store, manifest), size, text)
    replace_files(folder, files | {ORIGIN: json.dumps(origin, indent=1).encode()})
    return folder, True


def choose(location: StudyLocation, ledger: Ledger, number: int | None) -> TrialRecord:
    """The trial to export; raises ConfigError where there is none, or its weights were not kept."""
    trials = {record.number: record for record in ledger.trials()}
    best = ledger.best()
    if number is None and best is None:
        raise ConfigError(f"study {location.study}: no trial has finished; continue the search first")
    record = best if number is None else trials.get(number)
    if record is None:
        raise ConfigError(
            f"--trial: study {location.study} has no trial {number}; it has {len(trials)}, counted from 0"
        )
    if kept_weights(location, ledger, record) is None:
        kept = [str(n) for n, r in trials.items() if kept_weights(location, ledger, r)]
        raise ConfigError(
            f"--trial: the weights of trial {record.number} ({record.state}) were not kept (--keep-checkpoints); "
            f"there are those of: {', '.join(kept) or 'none'}"
        )
    return record


def selected(ledger: Ledger, record: TrialRecord) -> EpochResult:
    """The epoch that stands for a trial."""
    return select_epoch(record.epochs, ledger.info["settings"]["train.select"])


def kept_weights(location: StudyLocation, ledger: Ledger, record: TrialRecord) -> Manifest | None:
    """The newest checkpoint of the epoch that stands for a finished trial; None for others, or where it is gone."""
    if record.state is not State.COMPLETE:
        return None
    epoch, store = selected(ledger, record).epoch, open_store(trial_folder(location, record))
    return next((m for m in list_manifests(store) if m.epoch == epoch), None)


def describe(info: StudyCard, number: int, manifest: Manifest) -> dict[str, Any]:
    """What identifies an exported model."""
    return {
        "study": info.study,
        "uid": info.uid,
        "trial": number,
        "epoch": manifest.epoch,
        "weights": weights_blob(manifest).sha256,
        "version": fgseg.__version__,
    }


def trial_folder(location: StudyLocation, record: TrialRecord) -> str:
    """The address of a trial's checkpoints."""
    return join(location.folder, "trials", str(record.number))


def read_origin(folder: str) -> dict[str, Any]:
    """What an address says that it holds, nothing where there is none; raises ConfigError for other folders."""
    store = open_store(folder)
    if not store.list() and not store.folders() and not (is_local(folder) and Path(folder).is_file()):
        return {}
    try:
        content: dict[str, Any] = json.loads(store.get(ORIGIN))
    except (OSError, ValueError):
        raise ConfigError(f"--out: {folder} is no exported model, and is not replaced; name another folder") from None
    return content


def headline(info: StudyCard, record: TrialRecord, result: EpochResult) -> tuple[str, str]:
    """Title and origin of a model, for its card."""
    origin = (
        f"It is epoch {result.epoch} of trial {record.number} of the study `{info.study}`, of the family {info.title} "
        f"(`{info.space}`), searched by fgsearch {fgseg.__version__}."
    )
    return f"{info.study}, trial {record.number}", origin


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 a fault of files or MLflow, 2 the user's mistake."""
    try:
        options = parse(arguments)
        return run(options, location_from(options))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE


def run(options: argparse.Namespace, location: StudyLocation) -> int:
    """Do what the options say; raises ConfigError."""
    ledger = open_ledger(location)
    from search.tracking.client import TrackingError
    from search.tracking.model_registry import REGISTER_S, register  # once the mistakes that need no MLflow are told

    try:
        folder, written = export(location, ledger, options.trial, options.out)
        print(f"{folder} {'written' if written else 'is up to date'}")
        if options.trial is None and options.out is None and not options.no_register:
            number = register(location.tracking_uri, read_origin(folder), folder, REGISTER_S)
            print(
                f"version {number} of the model {location.study} in MLflow at {public_address(location.tracking_uri)}"
            )
    except (LedgerError, OSError, ValueError, TrackingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAULT
    return DONE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; raises ConfigError."""
    parser = Parser(prog="python -m search.export", description=__doc__)
    add_location_options(parser)
    parser.add_argument("--trial", type=int, metavar="N", help="the trial (default: the best)")
    parser.add_argument("--out", metavar="DIR", help="the folder (default: model in the study's, with --trial model-N)")
    parser.add_argument(
        "--no-register", action="store_true", help="leave MLflow's registry alone, as with --trial and --out"
    )
    return parser.parse_args(arguments)


def finish(plan: Plan, ledger: Ledger, console: Console, stop: Callable[[], bool]) -> None:
    """Export the best trial's model if it is another one than before, and register it; tells what fails, in one line.

    Args:
        plan: of a study with a finished trial.
        ledger: its books.
        console: shows what is waited for.
        stop: asked while MLflow is waited for; that is given up when it says so.
    """
    location = plan.location
    try:
        folder, _ = export(location, ledger)
        if plan.search.register_model:
            with console.status("registering the model in MLflow"):
                register_once(location, folder, stop)
    except (ConfigError, OSError, ValueError, TrackingError) as error:
        text = f"warning: the finished model: {error}; to try again: {study_command(plan, 'search.export')}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def register_once(location: StudyLocation, folder: str, stop: Callable[[], bool]) -> None:
    """Register the model in a folder, unless a note in it says that this was done; raises TrackingError."""
    note, address = open_store(folder), public_address(location.tracking_uri)
    if REGISTERED in note.list() and note.get(REGISTERED).decode() == address:
        return
    register(location.tracking_uri, read_origin(folder), folder, REGISTER_S, stop)
    note.put(REGISTERED, address.encode())


if __name__ == "__main__":
    sys.exit(main())
