"""The structure that CONTRIBUTING.md describes: which package may import which package and which library."""

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "fgseg": {"train", "evaluate", "predict"},
    "search": {"run", "status", "sync", "delete", "api"},
}
"""Modules on the first level of each product package: what people type, and the public API."""
GROUND = {"fgseg.cli", "fgseg.devices", "fgseg.distributed", "fgseg.gpu_memory", "fgseg.interpolation", "fgseg.labels"}
GROUND |= {"fgseg.garbage", "fgseg.node_load", "fgseg.results", "fgseg.tables"}
"""Small modules that every package of fgseg may import; `fgseg.config` is below them."""
MAY_IMPORT = {
    "search.compare": {"execution", "console", "report", "tracking", "ledger", "study", "cli"},
    "search.report": {"sampling", "ledger", "study", "cli"},
    "search.audit": {"tracking", "sampling", "ledger", "study", "cli"},
    "search.console": {"report", "ledger", "study"},
    "search.execution": {"console", "export", "report", "tracking", "cluster", "sampling", "ledger", "study", "cli"},
    "search.export": {"tracking", "ledger", "study", "cli"},
    "search.tracking": {"sampling", "ledger", "study"},
    "search.cluster": {"study"},
    "search.sampling": {"ledger", "study"},
    "search.ledger": {"study"},
    "search.cli": {"study"},
    "search.study": set(),
    "fgseg.training": {"metrics", "visual", "checkpoints", "data", "losses", "model", "storage"},
    "fgseg.inference": {"visual", "checkpoints", "data", "model", "storage"},
    "fgseg.labels": {"data"},
    "fgseg.metrics": {"data"},
    "fgseg.visual": {"metrics", "data", "storage"},
    "fgseg.checkpoints": {"storage"},
    "fgseg.data": set(),
    "fgseg.losses": set(),
    "fgseg.model": set(),
    "fgseg.storage": set(),
    "fgseg.config": set(),
}
"""The packages of the same product that each package may import; `search` may import all of `fgseg`."""
OWNERS = {
    "ray": {
        "search.cluster",
        "search.execution.ray_tune",
        "search.execution.worker_group",
        "search.execution.worker",  # reports from inside a worker process
    },
    "optuna": {
        "search.sampling",
        "search.tracking.optuna_studies",  # the file of optuna-dashboard
    },
    "mlflow": {"search.tracking"},
    "accelerate": {"fgseg"},
    "datasets": {"fgseg.data.hub"},
    "transformers": {
        "fgseg.model",
        "fgseg.inference",
        "search.tracking.model_registry",  # MLflow's Transformers flavour
    },
    "torch": {
        "fgseg",
        "search.execution.worker",  # prepares the process that trains
        "search.execution.worker_group",
        "search.report.frames",  # predicts the frames of the report
    },
    "triton": {"fgseg.losses.ssim_kernels"},
    "sqlalchemy": {
        "search.ledger",
        "search.tracking.client",  # takes the address of MLflow's database apart
        "search.tracking.sync",
    },
}
"""The packages and modules that may import each heavy library, with the reason where it is not the owner."""
PURE = ("fgseg.losses", "fgseg.metrics.iou", "fgseg.data.augment")
REPLACED = """
Place make_place find_place StudyFacts write_down equip erase Ask hand_out Points Sampled Listed HeldStorage
_doubting _remember Succession QuasiRandomThenGP Notebook noting propose surroundings patient told Desk take_back
settle pass_on Job halt alike carry_out learn Learn FULL take_part train_part learn_in_group portable cause_of
Mailbox Turns ASKING_S Shelf tidy check_mark leave_mark foreign Pulse bury gone keep_handlers RollCall said Question
Answer ALIKE drive run_missing open_desk Watch Outlets obey offer Mirror write_facts write_points write_data
KnownRun MirroredRun PASSING_TAGS LEADS reaching StudyCard Standing worth show_end as_called take_over Learner
build_learner judge place_rate gathering take_back_skipped taken_back rehearse try_out LUCK told_by_first ALONE
own_frames Outcome predict_frames take_share ran_out keep_freed_memory Trained at_hand describe_trial put_overlays
ours lose decide
"""
"""Names that were replaced by the field's own terms; those that are ordinary English words elsewhere are left out."""


UNDERSCORED = {
    "_asdict",  # public: namedtuples and rows of SQLAlchemy
    "_mapping",
    "_replace",
    "_exit",  # public: os
    "_actions",  # argparse: the options that the shell completes
    "_worker_logs_enabled",  # Ray
    "_private",  # Ray: see the functions of search/cluster/ray_cluster.py whose names end with ray_2
    "_actor_task_failed",  # Ray: see memory_kills_as_deaths_of_ray_2 in search/execution/ray_tune.py
    "_internal",
    "_reset_state",  # Accelerate: see forget_state_of_accelerate_1 in fgseg/distributed.py
    "_C",  # torch: see release_pool_of_torch_2_14 in fgseg/training/graph_recorder.py
    "_cuda_endAllocateToPool",
    "_cuda_releasePool",
}
"""Names of libraries that may be used in spite of their underscore; none of Optuna or MLflow."""


def modules() -> dict[str, Path]:
    paths = [*ROOT.glob("fgseg/**/*.py"), *ROOT.glob("search/**/*.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imported_names(tree: ast.Module) -> set[str]:
    """Every module that a module imports, and every name from it, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTS = {name: imported_names(tree) for name, tree in TREES.items()}
GRAPH = {name: {m for m in found if m in MODULES} - {name} for name, found in IMPORTS.items()}


def package_of(module: str) -> str:
    """The first two parts of a module's name: its package, or the module itself on the first level."""
    return ".".join(module.split(".")[:2])


def is_within(module: str, owners: set[str]) -> bool:
    return any(module == owner or module.startswith(f"{owner}.") for owner in owners)


def packages(product: str) -> set[str]:
    return {path.name for path in (ROOT / product).iterdir() if (path / "__init__.py").exists()}


def test_fgseg_never_imports_search_ray_optuna_or_mlflow():
    outside = {"search", "ray", "optuna", "mlflow"}
    users = {name for name, found in IMPORTS.items() if {m.split(".")[0] for m in found} & outside}
    assert {name for name in users if is_within(name, {"fgseg"})} == set()


@pytest.mark.parametrize("library", OWNERS)
def test_each_heavy_library_is_imported_by_its_owners_only(library: str):
    users = {name for name, found in IMPORTS.items() if library in {m.split(".")[0] for m in found}}
    assert {name for name in users if not is_within(name, OWNERS[library])} == set()


def test_the_table_of_packages_names_each_package():
    assert {f"{product}.{name}" for product in COMMANDS for name in packages(product)} == set(MAY_IMPORT)


def test_contributing_shows_the_table_of_packages():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = {}
    for product in COMMANDS:
        section = text.split(f"## {product}/: ")[1].split("\n## ")[0]
        for name, allowed in re.findall(r"^\| `(\w+)/` \| [^|]+ \| ([^|]+) \|$", section, re.MULTILINE):
            shown[f"{product}.{name}"] = set(allowed.split(", ")) - {"-"}
    assert shown == MAY_IMPORT


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_package_imports_only_what_the_table_of_packages_allows(package: str):
    product = package.split(".", maxsplit=1)[0]
    allowed = {f"{product}.{name}" for name in MAY_IMPORT[package]} | {package}
    if product == "fgseg":
        allowed |= {"fgseg", "fgseg.config"} | (set() if package in ("fgseg.config", "fgseg.storage") else GROUND)
    found = {
        f"{name} imports {target}"
        for name in GRAPH
        if package_of(name) == package
        for target in GRAPH[name]
        if target.split(".")[0] == product and package_of(target) not in allowed
    }
    assert found == set()


def test_ground_modules_import_the_settings_and_one_another_only():
    assert {target for name in GROUND for target in GRAPH[name] if package_of(target) != "fgseg.config"} <= GROUND


def test_sampling_uses_the_ledgers_values_and_never_its_database():
    targets = {m for name in GRAPH if package_of(name) == "search.sampling" for m in GRAPH[name]}
    values = {f"search.ledger.{name}" for name in ("records", "study_metadata", "trial_source")}
    assert {m for m in targets if is_within(m, {"search.ledger"})} <= {"search.ledger", *values}


@pytest.mark.parametrize("product", COMMANDS)
def test_first_level_holds_commands_the_public_api_and_packages_only(product: str):
    found = {path.stem for path in (ROOT / product).glob("*.py")}
    ground = {name.removeprefix("fgseg.") for name in GROUND} - packages(product) if product == "fgseg" else set()
    assert found == COMMANDS[product] | ground | {"__init__"}


def test_losses_metrics_and_augmentation_import_torch_only():
    for name, found in IMPORTS.items():
        if name.startswith(PURE):
            outside = {m.split(".")[0] for m in found} - {"torch", "triton", "fgseg"}
            assert outside <= {"math", "collections", "dataclasses", "functools", "logging", "typing"}, name


def test_there_is_no_cycle_of_imports():
    left = {name: set(targets) for name, targets in GRAPH.items()}
    while leaves := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in leaves:
            del left[name]
    assert left == {}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_imports(tree: ast.Module) -> set[str]:
    """Every name with a private part that a module imports, wherever in it."""
    return {name for name in imported_names(tree) if any(map(is_private, name.split(".")))}


def private_attributes(tree: ast.Module, defined: set[str]) -> set[str]:
    """The private attributes that a module uses, except names of our code (`defined`) on self, cls and super()."""
    used = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr))
    own = ("self", "cls", "super()")
    return {node.attr for node in used if node.attr not in defined or ast.unparse(node.value) not in own}


def defined_names(trees: list[ast.Module]) -> set[str]:
    """Every function, class, variable and attribute that modules define."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return defined | {
        node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }


def test_no_private_name_of_a_library_is_used():
    scripts = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "scripts").rglob("*.py")]
    trees = [*TREES.values(), *scripts]
    defined = defined_names(trees)
    used = {name for tree in trees for name in private_attributes(tree, defined)}
    used |= {part for tree in trees for name in private_imports(tree) for part in name.split(".") if is_private(part)}
    assert used == UNDERSCORED


def test_scripts_and_tests_import_no_private_name_of_optuna_sqlalchemy_or_mlflow():
    paths = [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    names = {name for path in paths for name in private_imports(ast.parse(path.read_text(encoding="utf-8")))}
    assert {name for name in names if name.split(".")[0] in ("optuna", "sqlalchemy", "mlflow")} == set()


@pytest.mark.parametrize(
    ("source", "found"),
    (
        ("from optuna.storages._rdb import models", {"optuna.storages._rdb", "optuna.storages._rdb.models"}),
        ("from optuna.storages import _rdb", {"optuna.storages._rdb"}),
        ("def f():\n    import optuna.storages._rdb.models", {"optuna.storages._rdb.models"}),
        ("from sqlalchemy import select, __version__", set()),
        ("trial._suggest(name)", {"_suggest"}),
        ("self.trial._study", {"_study"}),
        ("study()._storage", {"_storage"}),
        ("self._rng", {"_rng"}),
        ("self._study + cls._study + super()._study + self.__dict__", set()),
    ),
)
def test_private_name_is_found(source: str, found: set[str]):
    tree = ast.parse(source)
    assert private_imports(tree) | private_attributes(tree, {"_suggest", "_study", "_storage"}) == found


def test_no_replaced_name_remains():
    found = set()
    for module, tree in TREES.items():
        names = {*module.split(".")}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
        found |= {f"{module}: {name}" for name in names & set(REPLACED.split())}
    assert found == set()


def test_no_function_name_is_defined_in_more_than_three_modules():
    names = Counter(node.name for tree in TREES.values() for node in tree.body if isinstance(node, ast.FunctionDef))
    assert {name for name, count in names.items() if count > 3} <= {"main", "parse"}


def test_installation_holds_every_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    inits = [*ROOT.glob("fgseg/**/__init__.py"), *ROOT.glob("search/**/__init__.py")]
    expected = {".".join(path.parent.relative_to(ROOT).parts) for path in inits}
    assert set(listed) == expected | {"fgseg._configs"}
    assert {path.parent for path in MODULES.values()} == {path.parent for path in inits}


def test_the_mlflow_folder_holds_no_python_that_would_shadow_the_library():
    assert list((ROOT / "mlflow").glob("**/*.py")) == []


def test_no_test_module_imports_another():
    stems = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    for path in (ROOT / "tests").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        assert names & stems == set(), path


def test_names_of_test_modules_differ():
    stems = Counter(path.stem for path in (ROOT / "tests").rglob("*.py"))
    assert {stem for stem, count in stems.items() if count > 1} == set()
    assert list((ROOT / "tests").rglob("__init__.py")) == []
