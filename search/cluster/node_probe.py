"""Inspect the nodes of a cluster before the first trial, from a child process of the driver.

A child process, since Ray 2's client has no time limit and ends its process when the cluster is lost; see
node_checks.py.
"""

import logging
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from fgseg.config.errors import one_line
from search.study.resources import Node


@dataclass(frozen=True)
class NodeRequirements:
    """Requirements of a trial for its node."""

    settings: dict[str, Any]
    """Every dotted setting of the model, paths absolute."""
    splits: tuple[str, ...]
    """Names of the splits that the study reads."""
    storage: str
    """Address of the folder of studies, where the node reads `blob` and writes `blob`-<node ID>."""
    blob: str
    text: str
    """Content of the blob."""


@dataclass
class NodeReport:
    """Versions, GPUs and data of a node, and the requirements that it does not meet."""

    versions: dict[str, str] = field(default_factory=dict)
    gpu_mib: list[int] = field(default_factory=list)
    """Memory of each GPU in MiB."""
    data: str = ""
    """Fingerprint of the frames; empty where they cannot be read."""
    faults: list[str] = field(default_factory=list)
    """One line for each requirement that is not met."""


def versions() -> dict[str, str]:
    """Return the versions that must be equal on all nodes: fgsearch in full, torch and transformers as major.minor."""
    from importlib.metadata import version

    import fgseg

    libraries = {name: ".".join(version(name).split(".")[:2]) for name in ("torch", "transformers")}
    return {"fgsearch": fgseg.__version__} | libraries


def gpu_memory() -> list[int]:
    """Return the memory of every NVIDIA GPU of this machine in MiB, from nvidia-smi: opens no CUDA context."""
    import shutil
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return [int(line) for line in done.stdout.split() if line.isdigit()] if done.returncode == 0 else []


def inspect_node(requirements: dict[str, Any]) -> dict[str, Any]:
    """Check the requirements of a trial; runs on a node as a Ray task.

    Args:
        requirements: the fields of NodeRequirements, as a dict since the node may have another version of fgsearch.

    Returns:
        The fields of NodeReport.
    """
    required, report = NodeRequirements(**requirements), NodeReport(versions(), gpu_memory())
    for check in (check_storage, read_data):
        try:
            check(required, report)
        except Exception as error:  # any error is a requirement that is not met
            report.faults.append(one_line(error))
    return asdict(report)


def check_storage(required: NodeRequirements, report: NodeReport) -> None:
    """Read the driver's blob and write one for the driver; adds a fault if the driver's blob cannot be read."""
    import ray

    from fgseg.storage.store import open_store

    store = open_store(required.storage)
    try:
        same = store.get(required.blob).decode() == required.text
    except FileNotFoundError:
        same = False
    if same:
        store.put(f"{required.blob}-{ray.get_runtime_context().get_node_id()}", required.text.encode())
    else:
        report.faults.append(f"cannot read the driver's files in the storage {required.storage}; it must be shared")


def read_data(required: NodeRequirements, report: NodeReport) -> None:
    """Open the data, decoding frames missing in the node's cache, and fetch the pretrained weights."""
    from fgseg.config.loading import Layer, build
    from fgseg.data import fingerprint, load_splits
    from fgseg.model.pretrained import fetch_weights

    run = build([Layer("the cluster", required.settings)])
    report.data = fingerprint(load_splits(run.data, required.splits))
    fetch_weights(run.model.name)


def alive_nodes() -> list[Node]:
    """Return the nodes that Ray lists as alive; Ray needs about 15 s to remove a dead node."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["NodeManagerPort"],
            node["NodeManagerHostname"],
            node["Resources"].get("CPU", 0),
            node["Resources"].get("GPU", 0),
        )
        for node in alive
    ]


def inspect_nodes(required: NodeRequirements, ids: list[str]) -> dict[str, NodeReport | None]:
    """Run `inspect_node` on all nodes at once; return the reports by node ID, None for a node that died meanwhile.

    An error of the task itself becomes a fault of its node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    running: dict[str, Any] = {}
    reports: dict[str, NodeReport | None] = {}
    for node in ids:
        affinity = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=affinity)(inspect_node)
        running[node] = task.remote(vars(required))
    for node, result in running.items():
        try:
            reports[node] = NodeReport(**ray.get(result))
        except Exception as error:  # the node has died, or has no fgsearch or another version
            alive = node in [other.id for other in alive_nodes()]
            reports[node] = NodeReport(faults=[explain(error)]) if alive else None
    return reports


def explain(error: Exception) -> str:
    """Describe in one line why a node could not be inspected."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("ModuleNotFoundError" in line or "No module named" in line for line in lines):
        return f"fgsearch is not installed as it is here ({lines[-1]})"
    return f"could not be inspected ({type(error).__name__}: {lines[0] if lines else 'no message'})"


def probe(connection: Connection, address: str) -> None:
    """Connect, send the cluster's nodes, receive requirements and node IDs, send the reports; runs in the child."""
    import ray

    ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    connection.send(alive_nodes())
    connection.send(inspect_nodes(*connection.recv()))
