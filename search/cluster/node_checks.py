"""The roll call: before the first trial every node of a cluster must be there, and be what the driver is.

Ray is asked by a process of its own (nodes.py), since its client tries a dead address for nine minutes.
"""

import json
import selectors
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from fgseg.config.errors import ConfigError
from fgseg.storage.store import Store, open_store
from search.cluster.node_probe import NodeReport, NodeRequirements, gpu_memory, versions
from search.cluster.ray_cluster import ray_environment
from search.study.config import SearchConfig
from search.study.resources import Node, is_private, share_cluster

CONNECT_LIMIT_S = 20.0
"""How long a cluster may take until it has let us in and named its nodes."""
MIN_GPU_MEMORY_RATIO = 0.8
"""A GPU with less than this part of the largest one's memory is of another kind: trials that fit there fail here."""


@contextmanager
def connect(search: SearchConfig, needed: str) -> Iterator["ClusterCheck | None"]:
    """A roll call of the cluster that the search shall join; None for a private one, which is this machine.

    Raises:
        ConfigError: there is no such cluster, or no trial fits on any of its nodes.
    """
    if is_private(search) or search.ray_address is None:
        yield None
        return
    with ClusterCheck(search.ray_address) as call:
        share = share_cluster(search, call.nodes, needed)
        call.nodes = [node for node in call.nodes if node.fitting(share.cpus, share.gpus)]
        yield call


class ClusterCheck:
    """A connection to a cluster, for as long as the context lasts; `nodes` are those that it has.

    Raises:
        ConfigError: on entering, where the address is no cluster that lets us in; told within half a minute.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.nodes: list[Node] = []

    def __enter__(self) -> "ClusterCheck":
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "search.cluster.node_probe", self.address],
            env=ray_environment() | {"RAY_NUM_REDIS_GET_RETRIES": "2"},  # a wrong token stays wrong: two tries, not 20
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        try:
            self.nodes = [Node(**fields) for fields in json.loads(self.first_line())]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and whatever it still waits for."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def first_line(self) -> str:
        """What the process says once it is connected; raises ConfigError where it does not get that far."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(CONNECT_LIMIT_S) else ""
        if not line:
            raise ConfigError(f"--ray-address: {connection_error(self.address, self.stderr())}")
        return line

    def stderr(self) -> str:
        """What Ray has written on standard error."""
        self.errors.seek(0)
        return self.errors.read()

    def check_nodes(self, fingerprint: str, splits: tuple[str, ...], settings: dict[str, Any], storage: str) -> None:
        """Ask every node for all that a trial needs; returns when it is there.

        Args:
            fingerprint: of the driver's data, in these splits.
            splits: those that the study reads.
            settings: every dotted setting of the model, paths absolute.
            storage: the address of the folder of studies; no file stays there.

        Raises:
            ConfigError: in one line, every node that differs and how.
        """
        store, blob, text = open_store(storage), f"roll-call-{uuid.uuid4().hex}", uuid.uuid4().hex
        try:
            store.put(blob, text.encode())
            answers = self._collect(NodeRequirements(settings, splits, storage, blob, text))
            for node, told in answers.items():
                check_written(store, f"{blob}-{node.id}", told)
        finally:
            for name in (blob, *(f"{blob}-{node.id}" for node in self.nodes)):
                store.delete(name)
        if complaints := describe_differences(NodeReport(versions(), gpu_memory(), fingerprint), answers):
            raise ConfigError(f"the cluster at {self.address}: {'; '.join(complaints)}")

    def _collect(self, question: NodeRequirements) -> dict[Node, NodeReport]:
        """The answer of every node that has not died since; raises ConfigError if the cluster is lost meanwhile."""
        assert self.process.stdin is not None and self.process.stdout is not None
        order = {"question": vars(question), "ids": [node.id for node in self.nodes]}
        with suppress(BrokenPipeError):  # it has ended with the cluster
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        told = {fields["id"]: fields["answer"] for fields in map(json.loads, self.process.stdout)}
        if len(told) < len(self.nodes) or not any(told.values()):
            raise ConfigError(f"--ray-address: the cluster at {self.address} was lost while its nodes were asked")
        return {node: NodeReport(**told[node.id]) for node in self.nodes if told[node.id]}


def check_written(store: Store, name: str, told: NodeReport) -> None:
    """Add a fault if the driver does not find what a node says that it has written to the storage."""
    try:
        store.get(name)
    except FileNotFoundError:
        if not told.faults:
            told.faults.append("writes to another storage than the driver reads; it must be shared")


def connection_error(address: str, said: str) -> str:
    """Why there was no connection, out of what Ray wrote on standard error."""
    if "InvalidAuthToken" in said or "Unauthenticated" in said or "no authentication token was found" in said:
        return (
            f"the cluster at {address} refuses the token of this process; put the cluster's own into "
            "~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
        )
    if "Version mismatch" in said:
        found = [line.strip() for line in said.splitlines() if line.strip().startswith(("Ray: ", "Python: "))]
        return f"the cluster at {address} has other versions than this process ({', then '.join(found)}); use the same"
    if "Could not find any running Ray instance" in said:
        return "got auto, and no cluster runs on this machine; give host:port"
    return (
        f"what listens at {address} does not answer as a Ray cluster within {CONNECT_LIMIT_S:.0f} s; "
        "give host:port of the cluster's head, as its start script printed it"
    )


def describe_differences(expected: NodeReport, answers: dict[Node, NodeReport]) -> list[str]:
    """What differs, in words: versions and data from the driver's, GPUs from the largest; empty where nothing does."""
    found = []
    largest = max((mib for told in answers.values() for mib in told.gpu_mib), default=0)
    for node, told in answers.items():
        wrong = [
            f"has {name} {told.versions[name]}, here it is {version}"
            for name, version in expected.versions.items()
            if told.versions and told.versions.get(name) != version
        ]
        if told.data and told.data != expected.data:
            wrong.append(f"reads other data (fingerprint {told.data[:12]}, here it is {expected.data[:12]})")
        if told.gpu_mib and min(told.gpu_mib) < MIN_GPU_MEMORY_RATIO * largest:
            wrong.append(f"has a GPU of {min(told.gpu_mib)} MiB, others have {largest} MiB")
        if wrong or told.faults:
            found.append(f"{node} {', '.join(wrong + told.faults)}")
    return found
