"""The verbs in Python: `search.run_search`, `search.compare_families`, `search.open_study`, and those of a `Study`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgseg.cli import DONE
from fgseg.storage.store import join, open_store
from search.audit.trials import audit_location
from search.cli.signals import CODES, Signals
from search.compare.plans import name_of, plans_from
from search.compare.runner import run_comparison
from search.delete import delete
from search.execution.controller import run_study
from search.export.model import export
from search.ledger.catalog import open_ledger
from search.ledger.records import TrialRecord
from search.report.build import write_report
from search.study.location import PAGE, StudyLocation, find_location
from search.study.plan import COMPARISONS, make_plan
from search.tracking.sync import sync


class SearchStoppedError(Exception):
    """A fault ended a search before its budget was used up, and was told on the screen; the same call continues it."""


@dataclass(frozen=True)
class Study:
    """One study as it stands now; everything is read anew from its ledger."""

    location: StudyLocation
    """Where it lies: storage, name, MLflow."""

    @property
    def name(self) -> str:
        return self.location.study

    @property
    def folder(self) -> str:
        """The address of the folder that holds checkpoints, report and model: a path, or s3://bucket/prefix."""
        return self.location.folder

    @property
    def trials(self) -> list[TrialRecord]:
        """Every trial by number, with its settings and all its epochs."""
        return open_ledger(self.location).trials()

    @property
    def best(self) -> TrialRecord | None:
        """The finished trial with the highest validation mIoU, None while none has finished."""
        return open_ledger(self.location).best()

    def rows(self) -> list[dict[str, Any]]:
        """A dictionary per trial, as `pandas.DataFrame` takes them: number, state, settings, and its last metrics."""
        return [
            {"trial": t.number, "state": str(t.state)} | t.params | (t.chosen or t.epochs[-1]).metrics()
            if t.epochs
            else {"trial": t.number, "state": str(t.state)} | t.params
            for t in self.trials
        ]

    def audit(self) -> list[str]:
        """Each broken invariant as one line; none if the books are right (see `search.audit`)."""
        return list(audit_location(self.location, trials=None, interrupted=False, tracking=True))

    def sync(self) -> None:
        """Bring MLflow in line with the ledger; raises TrackingError where it cannot be reached."""
        sync(self.location)

    def export(self, out: str | Path | None = None, trial: int | None = None) -> str:
        """Write a trial, by default the best, as a Transformers folder, by default `model` in the study's folder."""
        return export(self.location, open_ledger(self.location), trial, None if out is None else str(out))[0]

    def report(self) -> str:
        """Write the report anew; returns the address of its page."""
        write_report(self.location)
        return join(self.location.folder, "report", PAGE)

    def delete(self) -> None:
        """Remove it whole: ledger, folders, MLflow runs.  Nobody is asked."""
        delete(self.location)


def run_search(
    space: str,
    settings: Mapping[str, Any] | None = None,
    *,
    config: str = "configs/quickstart.yaml",
    study: str | None = None,
    **search: Any,
) -> Study:
    """Search an approach family, or continue, like `python -m search.run`; returns once the budget is used up.

    Args:
        space: an approach family, such as "bas_cp".
        settings: what `--set` takes, by dotted name: {"train.epochs": 8, "search.loss.ssim.high": 2.0}.
        config: a file of settings.
        study: its name, by default `<config>-<space>`.
        search: settings of the search by the names of `SearchConfig`: trials=20, storage="runs", max_concurrent=2.

    Raises:
        ConfigError: the first mistake; nothing has been written then.
        SearchStoppedError: a fault ended it; the same call continues.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same call continues.
    """
    plan = make_plan(space, config, settings or {}, search, study)
    with Signals() as signals:
        code = run_study(plan, signals)
    finish(code, f"study {plan.study}")
    return Study(plan.location)


def open_study(
    study: str, storage: str | Path = "runs", tracking_uri: str | None = None, ledger_url: str | None = None
) -> Study:
    """A study that was begun before; raises ConfigError where there is none of this name."""
    location = find_location(storage, study, tracking_uri, ledger_url)
    open_ledger(location)
    return Study(location)


def compare_families(
    spaces: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    *,
    point: str = "start",
    seeds: int = 3,
    config: str = "configs/quickstart.yaml",
    studies: Sequence[str] | None = None,
    name: str | None = None,
    **search: Any,
) -> dict[str, Any]:
    """Train families with several seeds and judge them on the test split, like `python -m search.compare`.

    Args:
        spaces: approach families, such as ["baseline", "bas_cp"].
        settings: what `--set` takes, by dotted name.
        point: "start" of each space, or "best" of each study.
        seeds: repeats of each family.
        config: a file of settings.
        studies: their studies, in the same order; by default `<config>-<space>`.
        name: of the comparison, by default `<config>-<point>`.
        search: settings of the search by the names of `SearchConfig`.

    Returns:
        What `comparison.json` holds: tables, intervals and p-values of each family and each difference.

    Raises:
        ConfigError, SearchStoppedError, KeyboardInterrupt: as `run_search`.
    """
    plans = plans_from(
        spaces, studies=studies, point=point, seeds=seeds, config=config, assignments=settings or {}, search=search
    )
    name = name_of(name, plans, point)
    with Signals() as signals:
        finish(run_comparison(plans, name, point, signals), "the comparison")
    folder = join(plans[0].location.storage, COMPARISONS, name)
    content: dict[str, Any] = json.loads(open_store(folder).get("comparison.json"))
    return content


def finish(code: int, what: str) -> None:
    """Raise what the exit code of a command means, unless it is that of success."""
    if code in CODES.values():
        raise KeyboardInterrupt
    if code != DONE:
        raise SearchStoppedError(f"{what} was stopped by a fault; the same call continues it")
