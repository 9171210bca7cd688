"""Plans of a comparison: the repeats of every family, with the same seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fgseg.config.errors import ConfigError
from fgseg.config.loading import PATH_NAME
from search.ledger.catalog import find_ledger
from search.study.identity import differences
from search.study.plan import REPEATS, Plan, Repeat, RepeatPlan, make_plan
from search.study.space import is_about_frames

POINTS = ("start", "best")
FIRST_SEEDS = 3
"""Repeats of each family by default, and those with which `--seeds auto` begins."""
MAX_AUTO_SEEDS = 20
"""Repeats of each family after which `--seeds auto` ends."""
PRECISION = 0.01
"""Half of a 95 % interval of a difference in mIoU at which `--seeds auto` ends."""


EVERYWHERE = ("train.epochs", "train.seed", "train.select")
"""Settings in which compared families must agree, in addition to those that decide what the frames are."""


def plans_from(
    spaces: Sequence[str],
    *,
    studies: Sequence[str] | None,
    point: str,
    seeds: int,
    config: str,
    assignments: Mapping[str, Any],
    search: Mapping[str, Any],
) -> list[RepeatPlan]:
    """Resolve the repeats of every family and check them without reading data.

    Args:
        spaces: spaces of the families, each once.
        studies: studies of the families, in the same order; by default `<config>-<space>`.
        point: "start" of the space, or "best" of the study.
        seeds: repeats of each family.
        config: a file of settings.
        assignments: values of `--set` by dotted name.
        search: settings of the search by name; None if not given.

    Raises:
        ConfigError: the first mistake.
    """
    if isinstance(spaces, str):
        raise ConfigError(f"spaces: got {spaces!r}, must be a list of names such as ['baseline', 'bas']")
    if not isinstance(seeds, int):
        raise ConfigError(f"seeds: got {seeds!r}, must be a whole number or 'auto'")
    if point not in POINTS:
        raise ConfigError(f"--point: got {point!r}, must be one of: {', '.join(POINTS)}")
    if search.get("trials") is not None:
        raise ConfigError("--trials: a comparison trains --seeds repeats of each family; give --seeds")
    if seeds < 1:
        raise ConfigError(f"--seeds: got {seeds}, must be 1 or more")
    names: Sequence[str | None] = studies or [None] * len(spaces)
    if len(names) != len(spaces):
        raise ConfigError(f"--studies: got {len(names)} names for {len(spaces)} spaces, one for each is needed")
    if len(set(spaces)) != len(spaces):
        raise ConfigError(f"--spaces: got {' '.join(spaces)}, each may be named once")
    searches = [
        make_plan(space, config, assignments, search, study) for space, study in zip(spaces, names, strict=True)
    ]
    check_alike(searches)
    return [repeat_plan(plan, point, seeds) for plan in searches]


def check_alike(plans: Sequence[Plan]) -> None:
    """Raise ConfigError unless all families train equally long on the same data, with test frames."""
    first = plans[0].settings.flat()
    for plan in plans:
        run = plan.settings.flat()
        for key in run:
            if (is_about_frames(key) or key in EVERYWHERE) and run[key] != first[key]:
                raise ConfigError(
                    f"--spaces: {plan.space.name} has {key}={run[key]}, {plans[0].space.name} has {first[key]}: "
                    f"that would compare the setting and not the families; set it alike with --set {key}=..."
                )
    if first["data.test"] == 0:
        raise ConfigError("data.test: got 0, a comparison needs test frames; add --set data.test=40, for example")


def repeat_plan(plan: Plan, point: str, seeds: int) -> RepeatPlan:
    """Return the plan of a study's repeats at a point of its space; raises ConfigError if the point does not exist."""
    params = plan.space.start if point == "start" else best_point(plan)
    if not PATH_NAME.fullmatch(f"{plan.study}{REPEATS}"):
        raise ConfigError(
            f"--studies: got {plan.study!r}, its repeats would be kept under a name of over 100 characters"
        )
    return RepeatPlan.beside(plan, REPEATS, [Repeat(params, seed) for seed in range(seeds)])


def with_seeds(plan: RepeatPlan, seeds: int) -> RepeatPlan:
    """Return the plan with another number of seeds."""
    repeats = tuple(Repeat(plan.repeats[0].params, seed) for seed in range(seeds))
    return replace(plan, search=plan.search.model_copy(update={"trials": seeds}), repeats=repeats)


def best_point(plan: Plan) -> dict[str, float | int]:
    """Return the point of the best trial of a family's study.

    Raises:
        ConfigError: the study does not exist, has no finished trial, or was searched with other settings.
    """
    ledger = find_ledger(plan.location)
    if ledger is None:
        raise ConfigError(
            f"--point best: no study {plan.study} in {plan.search.storage}; search it first (python -m search.run "
            f"--space {plan.space.name}), or name the families' studies by --studies"
        )
    best = ledger.best()
    if best is None:
        raise ConfigError(
            f"--point best: no trial of study {plan.study} has finished; continue it, or take --point start"
        )
    changes = differences(comparable(ledger.metadata.identity), comparable(plan.identity))
    if changes and not plan.search.accept_changes:
        raise ConfigError(
            f"--point best: study {plan.study} was searched under other settings ({changes}), which would not "
            "be fair; give the same settings, or accept that with --accept-changes"
        )
    return best.params


def comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a search's identity to what decides its best point: version, settings, and names of searched settings."""
    if not identity:
        return {}
    searched = {"searched": ", ".join(sorted(identity["space"]["search"]))}
    return {key: identity[key] for key in ("version", "settings")} | {"space": searched}


def name_of(name: str | None, plans: Sequence[Plan], point: str) -> str:
    """Return the name of the comparison and its folder, by default `<config>-<point>`; raises ConfigError."""
    name = name or f"{plans[0].experiment}-{point}"
    if not PATH_NAME.fullmatch(name):
        raise ConfigError(f"--name: got {name!r}, must be letters, digits, dots, dashes and underscores")
    return name


def check_precision(value: float) -> float:
    """Return the value of --precision; raises ConfigError unless it is in (0, 1)."""
    if not 0 < value < 1:
        raise ConfigError(f"--precision: got {value:g}, must be above 0 and below 1")
    return value
