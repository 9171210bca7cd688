"""Python API: `run_search`, `compare_families`, `open_study` and `Study`, exported by the package `search`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fgseg.cli import DONE, format_os_error
from fgseg.config.errors import FaultError
from fgseg.storage.store import join
from search.audit.trials import audit_location
from search.cli.signals import CODES, Interrupted, Signals
from search.compare.confirmation import search_and_confirm
from search.compare.plans import FIRST_SEEDS, PRECISION, check_precision, name_of, plans_from
from search.compare.runner import run_comparison, stored_comparison
from search.delete import delete
from search.export.model import export
from search.ledger.catalog import open_ledger
from search.ledger.records import TrialRecord
from search.report.build import complete_untrained, write_report
from search.study.location import PAGE, StudyLocation, find_location
from search.study.plan import make_plan
from search.tracking.sync import sync


class SearchStoppedError(Exception):
    """A fault stopped a run before its budget was used up; the same call resumes it.

    The message has the cause, or else it was printed on stderr.
    """


@dataclass(frozen=True)
class Study:
    """One study.

    `trials` and `best` read the ledger at every access, and raise ConfigError if the study does not exist any more.
    """

    location: StudyLocation
    """Addresses of the study's files, ledger and MLflow runs."""

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.location.study

    @property
    def folder(self) -> str:
        """Address of the folder of checkpoints, report and model: a path, or s3://bucket/prefix."""
        return self.location.folder

    @property
    def trials(self) -> list[TrialRecord]:
        """Records of all trials by number, with searched settings and all epochs."""
        return open_ledger(self.location).trials()

    @property
    def best(self) -> TrialRecord | None:
        """Record of the best trial, see `StudyReader.best`; None if no trial is COMPLETE."""
        return open_ledger(self.location).best()

    def rows(self) -> list[dict[str, Any]]:
        """Return a dictionary per trial for `pandas.DataFrame`: `trial`, `state`, searched settings and metrics.

        The metrics are those of the selected epoch of a COMPLETE trial, else of the latest epoch.
        """
        shown = [(t, t.chosen or (t.epochs[-1] if t.epochs else None)) for t in self.trials]
        return [
            {"trial": t.number, "state": str(t.state)} | t.params | (epoch.metrics() if epoch else {})
            for t, epoch in shown
        ]

    def audit(self) -> list[str]:
        """Check the ledger, files and MLflow runs, see `search.audit`; returns each violated invariant as one line."""
        return list(audit_location(self.location, trials=None, interrupted=False, tracking=True))

    def sync(self) -> None:
        """Write to MLflow what it lacks of the ledger; may be repeated.  Raises TrackingError if it is unreachable."""
        sync(self.location)

    def export(self, out: str | Path | None = None, trial: int | None = None) -> str:
        """Export the model of a trial as a Transformers folder, and return the folder's address.

        Args:
            out: folder to write; by default `model` in the study's folder, or `model-<number>` for a chosen trial.
            trial: number of the trial; by default the best one.
        """
        return export(self.location, open_ledger(self.location), trial, None if out is None else str(out))[0]

    def report(self) -> str:
        """Write the report, and return the address of its HTML page."""
        complete_untrained(self.location)
        write_report(self.location)
        return join(self.location.folder, "report", PAGE)

    def delete(self) -> None:
        """Delete the study's ledger, files and MLflow runs, without confirmation."""
        delete(self.location)


def run_search(
    space: str,
    settings: Mapping[str, Any] | None = None,
    *,
    config: str = "configs/quickstart.yaml",
    study: str | None = None,
    **search: Any,
) -> Study:
    """Start or resume the search of a family, like `python -m search.run`; returns once the budget is used up.

    Call it from the main thread, since it handles signals.

    Args:
        space: name of a family, such as "bas_cp".
        settings: values of `--set` by dotted name: {"train.epochs": 8, "search.loss.ssim.high": 2.0}.
        config: path of a configuration file.
        study: name of the study, by default `<config>-<space>`.
        search: settings of the search by the names of `SearchConfig`: trials=20, storage="runs", max_concurrent=2.

    Raises:
        ConfigError: the first mistake in the arguments; nothing was written.
        SearchStoppedError: a fault stopped the run; the same call resumes it.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same call resumes the run.
    """
    plan = make_plan(space, config, settings or {}, search, study)
    run_or_raise(lambda signals: search_and_confirm(plan, signals), f"study {plan.study}")
    return Study(plan.location)


def open_study(
    study: str, storage: str | Path = "runs", tracking_uri: str | None = None, ledger_url: str | None = None
) -> Study:
    """Open an existing study; raises ConfigError if it does not exist.  Arguments are those of `find_location`."""
    location = find_location(storage, study, tracking_uri, ledger_url)
    open_ledger(location)
    return Study(location)


def compare_families(
    spaces: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    *,
    point: str = "start",
    seeds: int | Literal["auto"] = 3,
    precision: float = PRECISION,
    config: str = "configs/quickstart.yaml",
    studies: Sequence[str] | None = None,
    name: str | None = None,
    **search: Any,
) -> dict[str, Any]:
    """Train families with several seeds and evaluate them on the test split, like `python -m search.compare`.

    Call it from the main thread, since it handles signals.  Calling it again resumes an interrupted comparison.

    Args:
        spaces: names of families, such as ["baseline", "bas_cp"].
        settings: values of `--set` by dotted name.
        point: "start" of each space, or "best" of each study.
        seeds: repeats of each family; "auto" adds some until the intervals are narrow enough, see `precision`.
        precision: with "auto", largest half of a 95 % interval of a difference in mIoU.
        config: path of a configuration file.
        studies: names of the families' studies, in the order of `spaces`; by default `<config>-<space>`.
        name: name of the comparison, by default `<config>-<point>`.
        search: settings of the search by the names of `SearchConfig`.

    Returns:
        The content of `comparison.json`: tables, intervals and p-values of each family and each difference.

    Raises:
        ConfigError, SearchStoppedError, KeyboardInterrupt: as `run_search`.
    """
    plans = plans_from(
        spaces,
        studies=studies,
        point=point,
        seeds=FIRST_SEEDS if seeds == "auto" else seeds,
        config=config,
        assignments=settings or {},
        search=search,
    )
    narrow = check_precision(precision) if seeds == "auto" else None
    name = name_of(name, plans, point)
    run_or_raise(lambda signals: run_comparison(plans, name, point, signals, narrow), "the comparison")
    content: dict[str, Any] = json.loads(stored_comparison(plans, name))
    return content


def run_or_raise(command: Callable[[Signals], int], name: str) -> None:
    """Run a command that trains; raises KeyboardInterrupt or SearchStoppedError unless it returns DONE."""
    with Signals() as signals:
        try:
            code = command(signals)
        except Interrupted:  # a signal before the first trial
            raise KeyboardInterrupt from None
        except FaultError as error:
            raise SearchStoppedError(f"{name}: {error}") from error
        except OSError as error:
            raise SearchStoppedError(f"{name}: {format_os_error(error)}") from error
    if code in CODES.values():
        raise KeyboardInterrupt
    if code != DONE:
        raise SearchStoppedError(f"{name} was stopped by a fault; the same call resumes it")
