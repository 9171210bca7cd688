"""Points of other studies, from which a search begins: `--warm-start STUDY...`."""

from collections.abc import Mapping
from typing import Any

from fgseg.config.errors import ConfigError
from search.ledger.catalog import find_ledger
from search.study.location import resolve_location
from search.study.plan import Plan


def warm_points(plan: Plan, recorded: Mapping[str, Any]) -> list[dict[str, float | int]]:
    """Return the best point of each study that the plan names, moved into the plan's space.

    The points are those that the study's identity has recorded, if it was begun with the same studies: these may have
    changed since, or be gone.

    Args:
        plan: names the studies, which have the same storage and ledger database as its own.
        recorded: identity of the study; empty before its first run.

    Raises:
        ConfigError: a study does not exist, has no finished trial or shares no searched setting, or is the plan's own.
    """
    names = list(plan.search.warm_start)
    if recorded.get("space", {}).get("warm_start") == names:
        return list(recorded["warm_points"])
    return [best_point(plan, name) for name in names]


def best_point(plan: Plan, name: str) -> dict[str, float | int]:
    """Return the best point of a study in the plan's space; settings that it did not search have the start's values."""
    search = plan.search
    location = resolve_location(search.storage, name, search.tracking_uri, search.ledger_url)
    if name == plan.study:
        raise ConfigError(f"--warm-start: got {name}, which is the study itself; name another study")
    ledger = find_ledger(location)
    if ledger is None:
        raise ConfigError(f"--warm-start: no study {name} in the storage; `search.run --list-studies` lists them")
    best = ledger.best()
    if best is None:
        raise ConfigError(f"--warm-start: study {name} has no finished trial; run it first, or leave it out")
    if not best.params.keys() & plan.space.search.keys():
        raise ConfigError(
            f"--warm-start: study {name} searched none of the settings of {plan.space.name} "
            f"({', '.join(plan.space.search)}); leave it out"
        )
    return plan.space.nearest(best.params)
