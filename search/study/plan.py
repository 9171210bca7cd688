"""Plan of a run: settings, space, search settings and location, resolved from files and flags and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import ValidationError

import fgseg
from fgseg.config.errors import ConfigError, check_name, explain
from fgseg.config.files import find_file, read_yaml
from fgseg.config.label_sets import portable_name
from fgseg.config.loading import PATH_NAME, Layer, build, check_processes
from fgseg.config.settings import RunConfig
from fgseg.config.settings import flatten as flatten_settings
from fgseg.model.pretrained import NAMES
from search.study.config import SearchConfig
from search.study.location import StudyLocation, public_address, resolve_location
from search.study.objective import BOUNDARY, MIOU, check_objectives
from search.study.resources import check_resources, gpu_needed
from search.study.space import Space, add_ranges, load_space, override

REPEATS = "-repeats"
"""Suffix of the study that stores seed repeats, e.g. `quickstart-bas-repeats`; kept apart so that the sampler does not
see them."""
CONFIRMED = "-confirmed"
"""Suffix of the study that stores the repeats of --confirm."""
CONFIRM_SEED = 1_000_000
"""Seed of the first repeat of --confirm of each point, added to `train.seed`: no trial of a search has it."""
COMPARISONS = "comparison"
"""Name of the folder of comparisons in a storage."""
TWO_PHASES, MIN_TWO_PHASE_TRIALS = ("first-epochs", "short-full"), 4
"""Pruners that train many points briefly and then few in full, and their smallest budget: the start point, two points
to choose between, and one to finish."""
LARGEST_SEED = 2**31 - 1
"""Largest value of `train.seed`; the settings accept no larger one."""
UNIDENTIFYING = (
    *("data.root", "data.labels", "data.cache", "data.device"),
    *("train.compile", "train.frame_scores", "train.boundary_scores"),
)
"""Settings that do not change the results: paths, how a step is executed, and what else is recorded of an epoch.

They may differ between runs.  Another label set still makes another study: by the names of the class weights and the
fingerprint of the labels."""


@dataclass(frozen=True)
class Repeat:
    """A point to be trained again with another seed."""

    params: dict[str, float | int]
    """Searched settings by dotted name."""
    seed: int
    """At least 0; added to `train.seed`, so that the repeats with the same `seed` of all families are comparable."""


class TrialPoint(Protocol):
    """The attributes of TrialAttempt and TrialRecord that determine the settings of a trial."""

    @property
    def number(self) -> int: ...
    @property
    def params(self) -> dict[str, float | int]: ...
    @property
    def overrides(self) -> dict[str, Any]: ...
    @property
    def seed(self) -> int: ...
    @property
    def schedule(self) -> int | None: ...


@dataclass(frozen=True)
class Plan:
    """A checked plan of a search.  Creating a plan writes nothing."""

    space: Space
    layers: tuple[Layer, ...]
    """Settings from the config, the space and `--set`; later layers override earlier ones.  Without a trial's point."""
    search: SearchConfig
    experiment: str
    """MLflow experiment of a new study: name of the config."""
    settings: RunConfig
    """Settings at the space's start point, which is trial 0."""
    location: StudyLocation

    @property
    def study(self) -> str:
        """Name of the study."""
        return self.location.study

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that the study reads; a search never reads the test split."""
        return ("train", "val")

    @property
    def identity(self) -> dict[str, Any]:
        """Values that must be the same in every run of the study, without the data's fingerprint; as JSON types."""
        warm_start = {"warm_start": list(self.search.warm_start)} if self.search.warm_start else {}
        own: dict[str, Any] = {"space": self.space.to_json() | warm_start, "sampler": self.search.sampler}
        own |= {"trial_seeds": "common"} if self.search.trial_seeds == "common" else {}
        kept = {"keep": self.search.keep, "max_drop": self.search.max_drop} if self.search.keep else {}
        return self.common_identity() | own | {"objective": self.search.objective, "constraint": kept}

    def common_identity(self) -> dict[str, Any]:
        """Return the part of the identity that searches and repeats share: version and unsearched settings."""
        excluded = {*UNIDENTIFYING, *self.space.search}
        settings = {key: value for key, value in self.settings.flat().items() if key not in excluded}
        return {"version": fgseg.__version__, "settings": settings}

    def location_flags(self) -> list[str]:
        """Return the flags by which another command finds the storage, the ledger and MLflow, without passwords."""
        search = self.search
        flags = {"--storage": search.storage, "--ledger-url": search.ledger_url, "--tracking-uri": search.tracking_uri}
        return [word for flag, value in flags.items() if value for word in (flag, public_address(value))]

    def trial_settings(self, trial: TrialPoint) -> dict[str, Any]:
        """Return all settings of one trial by dotted name: the plan's, with the trial's params, overrides and seed."""
        own = {**trial.params, **shorter_schedule(trial.schedule), **trial.overrides}
        run = build([*self.layers, Layer(f"trial {trial.number}", own)])
        return run.flat() | {"train.seed": run.train.seed + trial.seed}


@dataclass(frozen=True)
class RepeatPlan(Plan):
    """Fixed points of a space to be trained with several seeds and evaluated on the test split."""

    repeats: tuple[Repeat, ...]

    @classmethod
    def beside(cls, plan: Plan, suffix: str, repeats: Sequence[Repeat], **search: Any) -> Self:
        """Return the plan of a study of repeats that is named after that of a search.

        Args:
            plan: of the search.
            suffix: of the study's name.
            repeats: all of the study.
            search: other settings of the section `search`.
        """
        fixed = {"trials": len(repeats), "objective": MIOU, "keep": None, "confirm": 0}
        own = {
            "search": plan.search.model_copy(update=fixed | search),
            "location": replace(plan.location, study=f"{plan.study}{suffix}"),
            "repeats": tuple(repeats),
        }
        return cls(**vars(plan) | own)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that the study reads."""
        return ("train", "val", "test")

    @property
    def identity(self) -> dict[str, Any]:
        """Return what may not change while a study is continued: settings, and names of the searched ones."""
        point = {"space": self.space.name, "settings": sorted(self.space.search)}
        return self.common_identity() | {"point": point}


@dataclass(frozen=True)
class ConfirmPlan(RepeatPlan):
    """Repeats of the best points of a search; the test split is not read, since they decide which trial is the best."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that the study reads."""
        return ("train", "val")


def shorter_schedule(epochs: int | None) -> dict[str, int]:
    """Return the settings, by dotted name, of a trial with a complete schedule of fewer epochs; empty for None."""
    return {} if epochs is None else {"train.epochs": epochs}


def make_plan(
    space_name: str, config: str, assignments: Mapping[str, Any], flags: Mapping[str, Any], study: str | None
) -> Plan:
    """Build and check a plan without access to data, storage or ledger.

    Args:
        space_name: name of a family.
        config: path of a configuration file; also below ./configs or the package's configs.
        assignments: values of `--set` by dotted name.
        flags: settings of the search by name; None for a flag that is not given.
        study: name of the study, or None for `<config>-<space>`.

    Raises:
        ConfigError: the first mistake, in the order settings, space, study, storage.
    """
    check_types(space_name, config, assignments)
    path = find_file(str(config))
    content = read_yaml(path)
    section = content.pop("search", None) or {}
    search = read_search(section, path, flags)
    ranges = section.get("space")
    settings = Layer(str(path), flatten_settings(content))
    assigned = Layer("--set", {k: v for k, v in assignments.items() if not k.startswith("search.")})
    data = build([settings, assigned], whole=False).data
    family = load_space(space_name, data)
    family = family if ranges is None else add_ranges(family, ranges, data, str(path))
    space, plain = override(family, assignments, data)
    frames = {"train.frame_scores": True} if search.pruner == "wilcoxon" else {}
    rims = {"train.boundary_scores": True} if any(name.startswith(BOUNDARY) for name in search.objectives) else {}
    needed = Layer("--pruner", frames), Layer("--objective", rims)
    layers = (settings, Layer(f"space {space.name}", space.fixed), Layer("--set", plain), *needed)
    name = f"{path.stem}-{space.name}" if study is None else study
    location = resolve_location(search.storage, name, search.tracking_uri, search.ledger_url)
    if name.endswith(REPEATS) or name == COMPARISONS:
        reserved = f"{COMPARISONS} and names that end in {REPEATS}"
        raise ConfigError(f"--study: got {name!r}, {reserved} are reserved for search.compare; choose another")
    if name.endswith(CONFIRMED):
        raise ConfigError(f"--study: got {name!r}, names that end in {CONFIRMED} are reserved for --confirm")
    start = build([*layers, Layer(f"space {space.name}", space.start)])
    plan = Plan(space, layers, search, path.stem, start, location)
    check_trials(plan)
    check_resources(search, gpu_needed(start))
    return plan


def check_types(space: Any, config: Any, assignments: Any) -> None:
    """Raise ConfigError for an argument of the Python API that is of another type than that of the command line."""
    if not isinstance(space, str):
        raise ConfigError(f"space: got {space!r}, must be the name of a family such as 'bas_cp'")
    if not isinstance(config, str | Path):
        raise ConfigError(f"config: got {config!r}, must be the path of a YAML file")
    if not isinstance(assignments, Mapping):
        raise ConfigError(f"settings: got {assignments!r}, must be a mapping such as {{'train.epochs': 3}}")


def check_trials(plan: Plan) -> None:
    """Raise ConfigError if processes, seed, objective or constraint make trials impossible, whatever their params."""
    check_processes(plan.settings, plan.search.processes)
    check_two_phases(plan.search)
    if plan.search.pruner != "none" and plan.settings.train.epochs == 1:
        raise ConfigError(
            f"--pruner: {plan.search.pruner} stops trials between epochs, and train.epochs is 1; train for more "
            "epochs, or leave --pruner out"
        )
    for key in plan.search.kept_classes:
        known = [c.key for c in plan.settings.label_set().foreground]
        check_name(key, known, f"--keep: no class {key!r}")
    check_objectives(plan.search.objectives, plan.settings.label_set(), plan.search.pruner)
    if plan.search.processes > 1 and "train.batch_size" in plan.space.search:
        raise ConfigError(
            "train.batch_size: is searched, but each of several processes takes an equal part of every batch; "
            "fix it by --set train.batch_size=..."
        )
    check_confirmation(plan)
    added = CONFIRM_SEED + plan.search.confirm_seeds if plan.search.confirm else plan.search.trials
    if plan.settings.train.seed + added > LARGEST_SEED:
        raise ConfigError(
            f"train.seed: got {plan.settings.train.seed}, which every trial adds its number to, must be at most "
            f"{LARGEST_SEED - added}; lower it"
        )


def check_two_phases(search: SearchConfig) -> None:
    """Raise ConfigError if a search of two phases has too few trials, or its time may end before the second phase."""
    if search.pruner not in TWO_PHASES:
        return
    if search.search_trials < MIN_TWO_PHASE_TRIALS:
        repeats = f" besides the {search.repeats} of --confirm" if search.repeats else ""
        raise ConfigError(
            f"--pruner: {search.pruner} needs at least {MIN_TWO_PHASE_TRIALS} trials{repeats}, got "
            f"{search.search_trials}; raise --trials or choose another pruner"
        )
    if search.max_hours is not None or search.max_gpu_hours is not None:
        raise ConfigError(
            f"--pruner: {search.pruner} trains points in full at the end, for which a limit of time may leave none; "
            "give --trials only, or choose another pruner"
        )


def check_confirmation(plan: Plan) -> None:
    """Raise ConfigError if the repeats of --confirm leave fewer trials than points to be confirmed."""
    search = plan.search
    if search.confirm and search.search_trials < search.confirm:
        raise ConfigError(
            f"--confirm {search.confirm} --confirm-seeds {search.confirm_seeds}: takes {search.repeats} of --trials "
            f"{search.trials}; give --trials {search.repeats + search.confirm} or more"
        )
    if search.confirm and not PATH_NAME.fullmatch(f"{plan.study}{CONFIRMED}"):
        raise ConfigError(f"--study: got {plan.study!r}, its repeats would have a name of over 100 characters")


NEEDED = {"max_drop": "keep", "confirm_seeds": "confirm"}
"""Settings of the search that change nothing without another one, by name."""


def read_search(section: Any, path: Path, flags: Mapping[str, Any]) -> SearchConfig:
    """Validate the section `search` of a configuration file, but its `space`, with flags that override it.

    Raises:
        ConfigError: not a mapping, an unknown name, a wrong type or a value out of range.
    """
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: search: got {section!r}, must be a mapping such as `trials: 20`")
    own = {key: value for key, value in section.items() if key != "space"}
    set_flags = {key: value for key, value in flags.items() if value is not None}
    try:
        search = SearchConfig.model_validate(own | set_flags)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        message = explain(error, SearchConfig, {})
        raise ConfigError(
            f"--{message.replace('_', '-', key.count('_'))}" if key in set_flags else f"{path}: search.{message}"
        ) from None
    for name, needed in NEEDED.items():
        if name in set_flags and not getattr(search, needed):
            raise ConfigError(f"--{name.replace('_', '-')}: changes nothing without --{needed}; add --{needed}")
    return search


def absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with absolute paths, since a worker has another working directory."""
    paths = {"data.labels": portable_name(settings["data.labels"])}
    for key in ("data.root", "data.cache", "model.name"):
        path = Path(settings[key] or "").expanduser()
        if settings[key] in NAMES and key == "model.name":
            continue
        if settings[key] and (path.exists() or key == "data.cache"):  # a hub id is not a path
            paths[key] = str(path.resolve())
    return settings | paths
