"""Describe what a comparison would train, and which differences it would find, without training anything."""

from collections.abc import Sequence

from rich.console import Console

from fgseg.cli import DONE
from fgseg.tables import Row, Table
from search.compare.repeats import trials_of
from search.compare.seeds import noise_of, powers
from search.console.documents import ComparisonPlanDocument, RepeatsDocument
from search.ledger.records import State
from search.study.plan import RepeatPlan


def comparison_plan(plans: Sequence[RepeatPlan], name: str, point: str) -> ComparisonPlanDocument:
    """Describe a comparison; raises ConfigError for a study of another identity.

    Args:
        plans: one of each family, with the same seeds.
        name: of the comparison.
        point: "start" or "best".
    """
    families, seeds = [planned_repeats(plan) for plan in plans], len(plans[0].repeats)
    noise = noise_of(plans)
    return ComparisonPlanDocument(
        name=name,
        point=point,
        seeds=seeds,
        epochs=plans[0].settings.train.epochs,
        trainings=sum(family.new + family.open for family in families),
        families=families,
        noise=None if noise is None else noise.of_seed**0.5,
        power=[] if noise is None else powers(noise, seeds),
    )


def planned_repeats(plan: RepeatPlan) -> RepeatsDocument:
    """Describe the repeats of a family."""
    state_of = {(tuple(sorted(r.params.items())), r.repeat): r.state for r in trials_of(plan)}
    states = [state_of.get((tuple(sorted(repeat.params.items())), repeat.seed)) for repeat in plan.repeats]
    new, running = states.count(None), states.count(State.RUNNING)
    return RepeatsDocument(
        space=plan.space.name,
        title=plan.space.title,
        study=plan.study,
        new=new,
        open=running,
        ended=len(states) - new - running,
        point=plan.repeats[0].params,
    )


def print_comparison_plan(found: ComparisonPlanDocument) -> int:
    """Print the study, the numbers of repeats and the point of each family, and the power; returns the exit code."""
    console = Console(highlight=False)
    columns = ["family", "study", "new", "open", "ended", "point"]
    rows = []
    for family in found.families:
        point = ", ".join(f"{key}={value:g}" for key, value in family.point.items())
        rows.append(Row([family.title, family.study, *map(str, (family.new, family.open, family.ended)), point]))
    console.print(Table("", columns, rows, text_columns=("study", "point")).to_rich())
    would = f"{found.trainings} trainings of {found.epochs} epochs would run or go on, one family after the other"
    console.print(would)
    for line in power_lines(found):
        console.print(line, soft_wrap=True)
    return DONE


def power_lines(found: ComparisonPlanDocument) -> list[str]:
    """Describe which difference in mIoU the planned seeds would find."""
    if found.noise is None:
        return [
            "power: needs two families with two finished seeds in common, and two test frames; begin with --seeds 2"
        ]
    lines = [f"noise: standard deviation {found.noise:.4f} of a difference in mIoU between seeds"]
    for one in found.power:
        needs = "cannot be found with these test frames" if one.seeds is None else f"needs {one.seeds} seeds"
        finds = "" if one.probability is None else f"; {found.seeds} find it with probability {one.probability:.2f}"
        lines.append(f"power: a difference of {one.difference:g} {needs} at this noise level{finds}")
    return lines
