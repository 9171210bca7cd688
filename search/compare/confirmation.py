"""Confirm the best points of a search: --confirm trains them again with other seeds, and selects among them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console

from fgseg.cli import DONE
from fgseg.tables import Row, Table
from search.cli.signals import Signals
from search.execution.controller import run_study
from search.ledger.catalog import find_ledger
from search.ledger.ledger import Ledger
from search.ledger.lock import LockedError
from search.ledger.records import State, TrialRecord, count_ended
from search.ledger.study_metadata import Confirmation, StudyMetadata
from search.ledger.time_used import limits_left, time_used
from search.study.objective import value_of
from search.study.plan import CONFIRM_SEED, CONFIRMED, ConfirmPlan, Plan, Repeat

if TYPE_CHECKING:
    from search.compare.statistics import Estimate

MIN_SEEDS = 2
"""Finished repeats without which a point has no interval, so that it cannot be selected."""


@dataclass(frozen=True)
class Candidate:
    """One of the best points of a search, and its repeats."""

    record: TrialRecord
    repeats: list[TrialRecord]
    """Finished ones, each with another seed."""

    def estimate(self, metric: str) -> "Estimate":
        """Return the mean of a metric over the repeats with its 95 % interval; without the trial's own value.

        The trial was chosen for that value, which is therefore too high on average.
        """
        from search.compare.statistics import mean_over_seeds  # imports scipy.stats, which takes a second

        return mean_over_seeds([value_of(r.chosen, metric) for r in self.repeats if r.chosen is not None])

    def keeps(self, metadata: StudyMetadata) -> bool:
        """Return whether the repeats keep the constraint of the search on average."""
        chosen = [r.chosen for r in self.repeats if r.chosen is not None]
        return all(fmean(e.iou[key] for e in chosen) >= floor for key, floor in metadata.constraint.floors.items())


def search_and_confirm(plan: Plan, signals: Signals) -> int:
    """Run a search and, if --confirm is given, the repeats of its best points; returns the exit code of `run_study`.

    May be repeated: finished trials and repeats are not trained again.

    Raises:
        ConfigError, Interrupted: as `run_study`.
    """
    code = run_study(plan, signals)
    if code != DONE or not plan.search.confirm:
        return code
    ledger = Ledger(plan.location.ledger_url, plan.study)
    best = best_points(ledger, plan.search.confirm)
    if (confirmation := confirm_plan(plan, ledger, best)) is not None:
        Console().print(f"confirming {len(best)} points with {plan.search.confirm_seeds} seeds each", highlight=False)
        code = run_study(confirmation, signals, with_notes=False)
        if code != DONE:
            return code
    candidates = read_candidates(plan, best)
    winner = select(candidates, ledger.metadata)
    if winner is None:
        Console().print("no point has two finished repeats, so that none is confirmed", highlight=False)
        return code
    print_candidates(candidates, ledger.metadata)
    if not record_winner(plan, winner):
        return code
    return run_study(plan, signals, with_notes=False)  # trains nothing; exports and shows the confirmed trial


def best_points(ledger: Ledger, number: int) -> list[TrialRecord]:
    """Return the best finished trials of a search, each with another point."""
    ranked = ledger.metadata.rank(ledger.trials())
    distinct = {tuple(sorted(r.params.items())): r for r in reversed(ranked)}
    return [r for r in ranked if r in distinct.values()][:number]


def confirm_plan(plan: Plan, ledger: Ledger, best: Sequence[TrialRecord]) -> ConfirmPlan | None:
    """Return the plan of the repeats; None if no time is left for one.

    Every point has one repeat before any has the next, so that a budget which ends leaves comparable points.
    """
    seeds = range(CONFIRM_SEED, CONFIRM_SEED + plan.search.confirm_seeds)
    repeats = [Repeat(record.params, seed) for seed in seeds for record in best]
    limits = limits_left(plan.search.model_dump(), [time_used(ledger.metadata, ledger.trials())])
    if any(hours <= 0 for hours in limits.values()):
        return None
    return ConfirmPlan.beside(plan, CONFIRMED, repeats, **limits)


def read_candidates(plan: Plan, best: Sequence[TrialRecord]) -> list[Candidate]:
    """Return the best points with their finished repeats of the seeds that the plan asks for."""
    ledger = find_ledger(replace(plan.location, study=f"{plan.study}{CONFIRMED}"))
    trials = ledger.trials() if ledger else []
    seeds = range(CONFIRM_SEED, CONFIRM_SEED + plan.search.confirm_seeds)
    done = [r for r in trials if r.state is State.COMPLETE and r.repeat in seeds and not r.overrides]
    return [Candidate(record, [r for r in done if r.params == record.params]) for record in best]


def select(candidates: Sequence[Candidate], metadata: StudyMetadata) -> Candidate | None:
    """Return the candidate whose interval of the first objective has the highest lower end; None without intervals.

    Candidates that keep the constraint on average come first.
    """
    known = [c for c in candidates if len(c.repeats) >= MIN_SEEDS]
    allowed = [c for c in known if c.keeps(metadata)] or known
    return max(allowed, key=lambda c: c.estimate(metadata.objectives[0]).low or 0.0, default=None)


def print_candidates(candidates: Sequence[Candidate], metadata: StudyMetadata) -> None:
    """Print the value of each point in the search, and its mean and interval over the repeats."""
    rows = []
    for candidate in candidates:
        found = candidate.estimate(metadata.objectives[0])
        interval = "-" if found.low is None else f"{found.low:.4f} to {found.high:.4f}"
        value, mean = f"{candidate.record.value:.4f}", f"{found.value:.4f}" if candidate.repeats else "-"
        rows.append(Row([f"{candidate.record.number:03d}", value, str(len(candidate.repeats)), mean, interval]))
    columns = ["trial", "in the search", "repeats", "mean", "95 % interval"]
    Console().print(Table(f"Confirmation: {metadata.objectives[0]}", columns, rows).to_rich())


def record_winner(plan: Plan, winner: Candidate) -> bool:
    """Record the confirmed trial in the search's ledger; returns False if another driver has taken the study."""
    ledger = Ledger(plan.location.ledger_url, plan.study)
    found = winner.estimate(plan.search.objectives[0])
    assert found.low is not None
    number, seeds = winner.record.number, len(winner.repeats)
    try:
        with ledger.lock():
            ended = count_ended(ledger.trials())
            ledger.record_confirmation(Confirmation(number, ended, found.value, found.low, seeds))
    except LockedError:
        return False
    return True
