"""The two kinds of studies that a run carries out: a search, and repeats of fixed points."""

from typing import Protocol

from rich.console import Console

from fgseg.cli import DONE, FAULT
from fgseg.config.errors import ConfigError
from search.cli.signals import Signals
from search.console.run_summary import print_run_summary, study_command
from search.execution.constraint import prepare_constraint
from search.execution.stop_reason import StopReason
from search.export.model import export_best_trial
from search.ledger.ledger import Ledger
from search.ledger.trial_source import FixedTrials
from search.report.summary import summarise
from search.sampling.distributions import distributions
from search.sampling.study_sampler import StudySampler
from search.study.plan import Plan, RepeatPlan
from search.tracking.client import TrackingError


class Strategy(Protocol):
    """Defines what differs between a search and repeats."""

    plan: Plan
    writes_report: bool
    """Whether the study has a report of its own."""

    def budget(self, ledger: Ledger) -> int:
        """Return the number of trials of the whole study, those that it has included."""

    def prepare(self, ledger: Ledger, signals: Signals) -> None:
        """Prepare the ledger for `Ledger.next_attempt`; requires the lock.  Raises Interrupted after a signal."""

    def present_results(self, ledger: Ledger, reason: StopReason, signals: Signals, console: Console) -> int:
        """Print, and export, what the study has found; returns the exit code."""


class SearchStrategy:
    """A search: the sampler suggests points up to the budget; the best trial is exported and registered."""

    writes_report = True

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def budget(self, ledger: Ledger) -> int:
        """Return the number of trials asked for, without the repeats of --confirm."""
        return self.plan.search.search_trials

    def prepare(self, ledger: Ledger, signals: Signals) -> None:
        """Prepare the ledger with the space, the sampler and the pruner."""
        plan, train = self.plan, self.plan.settings.train
        source = StudySampler(
            distributions(plan.space.search),
            plan.space.start,
            trials=plan.search.search_trials,
            sampler=plan.search.resolved_sampler,
            pruner=plan.search.pruner,
            epochs=train.epochs,
            seed=train.seed,
            off_below=plan.space.off_below,
            warm_start=[plan.space.nearest(point) for point in ledger.metadata.identity.get("warm_points", ())],
            objectives=plan.search.objectives,
            floors=prepare_constraint(plan, ledger, signals).floors,
            common_seed=plan.search.trial_seeds == "common",
        )
        ledger.start(source, epochs=train.epochs, select=train.select, objectives=plan.search.objectives)

    def present_results(self, ledger: Ledger, reason: StopReason, signals: Signals, console: Console) -> int:
        """Export the best trial and print the summary; a search without a finished trial is a fault."""
        summary = summarise(ledger, self.plan.location)
        if summary.best is not None and not signals.received:
            self._export(ledger, signals, console)
        print_run_summary(self.plan, console, summary, finished=reason.exit_code == DONE, limit=reason.limit)
        return FAULT if summary.best is None and reason.exit_code == DONE else reason.exit_code

    def _export(self, ledger: Ledger, signals: Signals, console: Console) -> None:
        """Export and register the best trial's model; a failure is a warning, since the search itself is done."""
        try:
            export_best_trial(self.plan, ledger, console, lambda: bool(signals.received))
        except (ConfigError, OSError, ValueError, TrackingError) as error:
            text = f"warning: the finished model: {error}; to try again: {study_command(self.plan, 'search.export')}"
            console.print(text, soft_wrap=True, highlight=False, markup=False)


class RepeatStrategy:
    """Repeats: every fixed point that the study lacks is trained once; `search.compare` presents the results."""

    writes_report = False

    def __init__(self, plan: RepeatPlan) -> None:
        self.plan: Plan = plan
        self.trials = FixedTrials(plan.repeats)

    def budget(self, ledger: Ledger) -> int:
        """Count the repeats that the study has, and those that it lacks."""
        known = ledger.trials()
        return len(known) + self.trials.remaining(known)

    def prepare(self, ledger: Ledger, signals: Signals) -> None:
        """Prepare the ledger with the fixed points."""
        train = self.plan.settings.train
        ledger.start(self.trials, epochs=train.epochs, select=train.select)

    def present_results(self, ledger: Ledger, reason: StopReason, signals: Signals, console: Console) -> int:
        """Return the exit code; `search.compare` presents the results."""
        return reason.exit_code


def strategy_of(plan: Plan) -> Strategy:
    """Return the strategy of a plan."""
    return RepeatStrategy(plan) if isinstance(plan, RepeatPlan) else SearchStrategy(plan)
