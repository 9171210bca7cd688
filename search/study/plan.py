"""What a call of the command line asks for, resolved and checked: settings, space, study, storage."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

import fgseg
from fgseg.config.errors import ConfigError, explain
from fgseg.config.files import find_file
from fgseg.config.loading import Layer, build, check_processes, read_yaml
from fgseg.config.settings import RunConfig
from fgseg.config.settings import flatten as flatten_settings
from fgseg.model.pretrained import VARIANTS
from search.study.config import SearchConfig
from search.study.location import StudyLocation, resolve_location
from search.study.resources import check_resources, gpu_needed
from search.study.space import Space, load_space, override

REPEATS = "-repeats"
"""Suffix of the study that stores seed repeats, e.g. `quickstart-bas-repeats`; kept apart so that the sampler does not
see them."""
COMPARISONS = "comparison"
"""The folder of a storage that holds comparisons."""
LARGEST_SEED = 2**31 - 1
"""What `train.seed` may be at most."""
UNIDENTIFYING = ("data.root", "data.cache", "data.device", "train.compile")
"""Settings that say where data lie or how fast a step is, not what is computed: they may change between runs."""


@dataclass(frozen=True)
class Repeat:
    """A point to be trained with a seed of its own."""

    params: dict[str, float | int]
    """Searched settings by dotted name."""
    seed: int
    """From 0 on; added to `train.seed`, so that repeat s of every family has the same seed."""


class TrialPoint(Protocol):
    """What decides the settings of a trial; starts of trials and their records have it."""

    @property
    def number(self) -> int: ...
    @property
    def params(self) -> dict[str, float | int]: ...
    @property
    def overrides(self) -> dict[str, Any]: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Plan:
    """A search as asked for, resolved and checked; nothing of it has been carried out."""

    space: Space
    layers: tuple[Layer, ...]
    """Settings from the config, the space and `--set`, later ones on top; without a trial's own point."""
    search: SearchConfig
    experiment: str
    """MLflow experiment of a new study: the config's name."""
    settings: RunConfig
    """The settings of the space's start point, which is trial 0."""
    location: StudyLocation

    @property
    def study(self) -> str:
        """The study's name."""
        return self.location.study

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the study reads; a search never reads the test split."""
        return ("train", "val")

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the study this study, without its data's fingerprint; all else may change between runs."""
        return self.common_identity() | {"space": self.space.to_json(), "sampler": self.search.sampler}

    def common_identity(self) -> dict[str, Any]:
        """Return the part of the identity that searches and repeats share: version and unsearched settings."""
        free = {*UNIDENTIFYING, *self.space.search}
        settings = {key: value for key, value in self.settings.flat().items() if key not in free}
        return {"version": fgseg.__version__, "settings": settings}

    def trial_settings(self, trial: TrialPoint) -> dict[str, Any]:
        """Return all dotted settings of one trial: the plan's, the trial's point, its overrides, its seed."""
        run = build([*self.layers, Layer(f"trial {trial.number}", {**trial.params, **trial.overrides})])
        return run.flat() | {"train.seed": run.train.seed + trial.seed}


@dataclass(frozen=True)
class RepeatPlan(Plan):
    """Fixed points of a space to be trained with several seeds and evaluated on the test split."""

    repeats: tuple[Repeat, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the study reads."""
        return ("train", "val", "test")

    @property
    def identity(self) -> dict[str, Any]:
        """See Plan; the ranges of the space do not matter, only which settings it searches."""
        point = {"space": self.space.name, "settings": sorted(self.space.search)}
        return self.common_identity() | {"point": point}


def make_plan(
    space_name: str, config: str, assignments: Mapping[str, Any], flags: Mapping[str, Any], study: str | None
) -> Plan:
    """Resolve and check what was asked for, as far as that needs neither data nor a ledger.

    Args:
        space_name: an approach family.
        config: path of a configuration file, below ./configs or the package's configs, or anywhere.
        assignments: `--set` key by value.
        flags: settings of the search given as flags; None where not given.
        study: name of the study, or None for `<config>-<space>`.

    Raises:
        ConfigError: the first mistake, in the order settings, space, study, storage.
    """
    path = find_file(config)
    content = read_yaml(path)
    search = read_search(content.pop("search", None) or {}, path, flags)
    settings = Layer(str(path), flatten_settings(content))
    given = Layer("--set", {k: v for k, v in assignments.items() if not k.startswith("search.")})
    build([settings, given], whole=False)
    space, plain = override(load_space(space_name), assignments)
    layers = (settings, Layer(f"space {space.name}", space.fixed), Layer("--set", plain))
    name = f"{path.stem}-{space.name}" if study is None else study
    location = resolve_location(search.storage, name, search.tracking_uri, search.ledger_url)
    if name.endswith(REPEATS) or name == COMPARISONS:
        kept = f"{COMPARISONS} and names that end in {REPEATS}"
        raise ConfigError(f"--study: got {name!r}, {kept} are kept for search.compare; choose another")
    start = build([*layers, Layer(f"space {space.name}", space.start)])
    plan = Plan(space, layers, search, path.stem, start, location)
    check_trials(plan)
    check_resources(search, gpu_needed(start))
    return plan


def check_trials(plan: Plan) -> None:
    """Raise ConfigError where some trial could not be begun, whatever its point."""
    check_processes(plan.settings, plan.search.processes)
    if plan.search.processes > 1 and "train.batch_size" in plan.space.search:
        raise ConfigError(
            "train.batch_size: is searched, but each of several processes takes an equal part of every batch; "
            "fix it by --set train.batch_size=..."
        )
    last = plan.settings.train.seed + plan.search.trials
    if last > LARGEST_SEED:
        raise ConfigError(
            f"train.seed: got {plan.settings.train.seed}, which every trial adds its number to, must be at most "
            f"{LARGEST_SEED - plan.search.trials}; lower it"
        )


def read_search(section: Any, path: Path, flags: Mapping[str, Any]) -> SearchConfig:
    """The section `search` with the flags laid over it; raises ConfigError."""
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: search: got {section!r}, must be a mapping such as `trials: 20`")
    given = {key: value for key, value in flags.items() if value is not None}
    try:
        return SearchConfig.model_validate(section | given)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        message = explain(error, SearchConfig, {})
        raise ConfigError(
            f"--{message.replace('_', '-', key.count('_'))}" if key in given else f"{path}: search.{message}"
        ) from None


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two identities of a study, in words; empty where nothing does.

    Only what both name is compared, so that the data's fingerprint may be left out while it is unknown.
    """
    before, after = flatten_settings(recorded), flatten_settings(now)
    shared = recorded.keys() & now.keys()
    keys = [k for k in sorted(before.keys() | after.keys()) if k.split(".")[0] in shared]
    return "; ".join(
        f"{k}: {before.get(k)!r} there, {after.get(k)!r} now" for k in keys if before.get(k) != after.get(k)
    )


def check_identity(recorded: Mapping[str, Any], now: Mapping[str, Any], plan: Plan) -> None:
    """Raise ConfigError if a study was begun with another identity, unless --accept-changes was given."""
    changes = differences(recorded, now)
    if changes and not plan.search.accept_changes:
        raise ConfigError(
            f"study {plan.study} was begun with something else ({changes}); "
            "choose another --study, give the same settings again, or accept the change with --accept-changes"
        )


def absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """The same settings with paths that hold in a worker, which has another current folder."""
    paths = {}
    for key in ("data.root", "data.cache", "model.name"):
        path = Path(settings[key] or "").expanduser()
        if settings[key] in VARIANTS and key == "model.name":
            continue
        if settings[key] and (path.exists() or key == "data.cache"):  # a hub id names no path
            paths[key] = str(path.resolve())
    return settings | paths
