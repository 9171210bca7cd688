"""Who may import whom: the structure that the design promises."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWNERS = {
    "ray": {
        "search.execution.ray_tune",
        "search.execution.worker",
        "search.execution.worker_group",
        "search.cluster.ray_cluster",
        "search.cluster.node_probe",
    },
    "optuna": {
        "search.sampling.importance",
        "search.ledger.ledger",
        "search.ledger.storage",
        "search.ledger.sampling",
        "search.study.space",
        "search.ledger.records",
        "search.ledger.fencing",
        "search.ledger.study_metadata",
        "search.ledger.trial_source",
    },
    "mlflow": {"search.tracking.run_writer", "search.tracking.client", "search.tracking.model_registry"},
    "datasets": {"fgseg.data.hub"},
}
"""Each heavy library, and the files that may import it."""
PURE = ("fgseg.losses", "fgseg.metrics.iou", "fgseg.data.augment")


def modules() -> dict[str, Path]:
    paths = [*ROOT.glob("fgseg/**/*.py"), *ROOT.glob("search/**/*.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


GRAPH = {name: {m for m in imports(path) if m in modules()} - {name} for name, path in modules().items()}


def test_fgseg_never_imports_search():
    assert {
        name: GRAPH[name] for name in GRAPH if name.startswith("fgseg") and any("search" in m for m in GRAPH[name])
    } == {}


@pytest.mark.parametrize("library", OWNERS)
def test_each_heavy_library_is_imported_by_its_owners_only(library: str):
    users = {name for name, path in modules().items() if library in {m.split(".")[0] for m in imports(path)}}
    assert users <= OWNERS[library]


def test_losses_metrics_and_augmentation_import_torch_only():
    for name, path in modules().items():
        if name.startswith(PURE):
            outside = {m.split(".")[0] for m in imports(path)} - {"torch", "fgseg"}
            assert outside <= {"math", "collections", "dataclasses", "functools", "typing"}, name


def test_there_is_no_cycle_of_imports():
    left = {name: set(targets) for name, targets in GRAPH.items()}
    while leaves := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in leaves:
            del left[name]
    assert left == {}


def test_the_mlflow_folder_holds_no_python_that_would_shadow_the_library():
    assert list((ROOT / "mlflow").glob("**/*.py")) == []
