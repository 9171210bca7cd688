"""Asks the nodes before the first trial: `python -m search.cluster.node_probe ADDRESS`, a process of its own.

Ray's client cannot be given a time limit and ends its process when a cluster is lost under it; see roll_call.py.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from fgseg.config.errors import one_line
from search.study.resources import Node


@dataclass(frozen=True)
class NodeRequirements:
    """What a node must be able to do."""

    settings: dict[str, Any]
    """Every dotted setting of the model, paths absolute."""
    splits: tuple[str, ...]
    """The splits of the data that it must be able to read."""
    storage: str
    """The folder in which it finds `blob`, and puts its answer."""
    blob: str
    text: str
    """What is in the blob."""


@dataclass
class NodeReport:
    """What a node has, and what it cannot do."""

    versions: dict[str, str] = field(default_factory=dict)
    gpu_mib: list[int] = field(default_factory=list)
    """Memory of each GPU."""
    data: str = ""
    """Fingerprint of the frames."""
    faults: list[str] = field(default_factory=list)
    """What it cannot do, in words."""


def versions() -> dict[str, str]:
    """The versions that must agree: ours in full, of the libraries that compute the first two parts."""
    from importlib.metadata import version

    import fgseg

    libraries = {name: ".".join(version(name).split(".")[:2]) for name in ("torch", "transformers")}
    return {"fgsearch": fgseg.__version__} | libraries


def gpu_memory() -> list[int]:
    """MiB of every NVIDIA GPU of this machine, asked of its driver: no CUDA context is opened for it."""
    import shutil
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return [int(line) for line in told.stdout.split() if line.isdigit()] if told.returncode == 0 else []


def inspect_node(question: dict[str, Any]) -> dict[str, Any]:
    """What one node answers; runs on it.  `question` and the result are the fields of Question and Answer."""
    asked, told = NodeRequirements(**question), NodeReport(versions(), gpu_memory())
    for task in (check_storage, read_data):
        try:
            task(asked, told)
        except Exception as error:  # whatever it cannot do is what we want to know
            told.faults.append(one_line(error))
    return asdict(told)


def check_storage(asked: NodeRequirements, told: NodeReport) -> None:
    """Read the driver's blob, and write one for it to read."""
    import ray

    from fgseg.storage.store import open_store

    store = open_store(asked.storage)
    try:
        same = store.get(asked.blob).decode() == asked.text
    except FileNotFoundError:
        same = False
    if same:
        store.put(f"{asked.blob}-{ray.get_runtime_context().get_node_id()}", asked.text.encode())
    else:
        told.faults.append(f"does not see what the driver writes to the storage {asked.storage}; it must be shared")


def read_data(asked: NodeRequirements, told: NodeReport) -> None:
    """Open the data, decoding what the node's cache lacks, and the weights; both are needed by every trial."""
    from fgseg.config.loading import Layer, build
    from fgseg.data import fingerprint, load_splits
    from fgseg.model.pretrained import fetch_weights

    run = build([Layer("the cluster", asked.settings)])
    told.data = fingerprint(load_splits(run.data, asked.splits))
    fetch_weights(run.model.name)


def alive_nodes() -> list[Node]:
    """The nodes that Ray believes to be alive."""
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


def inspect_nodes(question: dict[str, Any], ids: list[str]) -> Iterator[dict[str, Any]]:
    """Ask all at once; gives each one's answer under its id as they come, what went wrong on the way as a fault.

    A node that has died since it was listed has None for an answer: a search can do without it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in ids:
        location = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=location)(inspect_node)
        asked[task.remote(question)] = node
    while asked:
        (done,), _ = ray.wait(list(asked), num_returns=1)
        node, told = asked.pop(done), None
        try:
            told = ray.get(done)
        except Exception as error:  # the node died, or has no or another fgsearch
            if node in [still.id for still in alive_nodes()]:
                told = asdict(NodeReport(faults=[explain(error)]))
        yield {"id": node, "answer": told}


def explain(error: Exception) -> str:
    """Why a node could not be asked, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("ModuleNotFoundError" in line or "No module named" in line for line in lines):
        return f"fgsearch is not installed as it is here ({lines[-1]})"
    return f"could not be asked ({type(error).__name__}: {lines[0] if lines else 'no reason given'})"


def main() -> int:
    """Connect, say which nodes there are, and ask those that the next line on standard input names."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints news of the cluster on standard output, which is for answers only
    import ray

    ray.init(sys.argv[1], logging_level=logging.ERROR, log_to_driver=False)
    print(json.dumps([asdict(node) for node in alive_nodes()]), file=answers, flush=True)
    line = sys.stdin.readline()
    order = json.loads(line) if line.strip() else {"question": {}, "ids": []}
    for told in inspect_nodes(order["question"], order["ids"]):
        print(json.dumps(told), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
