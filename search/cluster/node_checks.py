"""Check a cluster before the first trial: every node must meet the requirements of a trial and match the driver.

A child process connects to Ray (node_probe.py), because Ray 2 retries an address without a cluster for nine minutes.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fgseg.config.errors import ConfigError
from fgseg.storage.store import Store, open_store
from search.cluster.node_probe import NodeReport, NodeRequirements, gpu_memory, probe, versions
from search.cluster.ray_cluster import AUTH_MODE, imported_without_auth_mode, ray_environment
from search.study.child_process import ChildError, ChildProcess
from search.study.config import SearchConfig
from search.study.resources import Node, is_private, share_cluster

CONNECT_LIMIT_S = 20.0
"""Seconds until a cluster must have accepted the connection and listed its nodes; else ConfigError."""
MIN_GPU_MEMORY_RATIO = 0.8
"""Minimum memory of a GPU as a fraction of the cluster's largest; below it, trials that fit on the largest would run
out of memory, so the node is rejected."""


@contextmanager
def connect(search: SearchConfig, needed: str) -> Iterator["ClusterCheck | None"]:
    """Connect to the cluster that the search will join; yields None for a private cluster, which is this machine.

    Args:
        search: address of the cluster and resources of a trial.
        needed: see `search.study.resources.gpu_needed`.

    Raises:
        ConfigError: there is no such cluster, or no trial fits on any of its nodes.
    """
    if is_private(search) or search.ray_address is None:
        yield None
        return
    environment = ray_environment()
    if AUTH_MODE in environment and imported_without_auth_mode():
        raise ConfigError(
            f"--ray-address: this process imported Ray without {AUTH_MODE}, so that it sends no token; "
            f"set {AUTH_MODE}=token before Ray is imported"
        )
    # A wrong token stays wrong: two attempts to connect instead of 20.
    environment |= {"RAY_NUM_REDIS_GET_RETRIES": "2"}
    try:
        started = ChildProcess(probe, search.ray_address, environment=environment)
    except ChildError as error:
        raise ConfigError(f"--ray-address: the cluster cannot be checked ({error}); free some memory") from None
    with started as child:
        try:
            nodes: list[Node] = child.receive(CONNECT_LIMIT_S)
        except ChildError:
            raise ConfigError(f"--ray-address: {connection_error(search.ray_address, child.output())}") from None
        share = share_cluster(search, nodes, needed)
        fitting = [node for node in nodes if node.fitting(share.cpus, share.gpus)]
        yield ClusterCheck(search.ray_address, fitting, child)


class ClusterCheck:
    """An open connection to a cluster.

    Args:
        address: of the cluster.
        nodes: to be checked, those on which a trial fits.
        child: the process that runs `node_probe.probe`.
    """

    def __init__(self, address: str, nodes: list[Node], child: ChildProcess) -> None:
        self.address, self.nodes, self.child = address, nodes, child

    def check_nodes(self, fingerprint: str, splits: tuple[str, ...], settings: dict[str, Any], storage: str) -> None:
        """Check on every node the requirements of a trial; may be called once.

        Args:
            fingerprint: of the driver's data, in these splits.
            splits: names of the splits that the study reads.
            settings: every dotted setting of the model, paths absolute.
            storage: address of the folder of studies; the files written there are deleted at the end.

        Raises:
            ConfigError: in one line, every node that differs and how.
        """
        store, blob, text = open_store(storage), f"cluster-check-{uuid.uuid4().hex}", uuid.uuid4().hex
        try:
            store.put(blob, text.encode())
            reports = self._collect(NodeRequirements(settings, splits, storage, blob, text))
            for node, report in reports.items():
                check_written(store, f"{blob}-{node.id}", report)
        finally:
            for name in (blob, *(f"{blob}-{node.id}" for node in self.nodes)):
                store.delete(name)
        if differing := describe_differences(NodeReport(versions(), gpu_memory(), fingerprint), reports):
            raise ConfigError(f"the cluster at {self.address}: {'; '.join(differing)}")

    def _collect(self, required: NodeRequirements) -> dict[Node, NodeReport]:
        """Return the reports of all nodes still alive; raises ConfigError if the cluster is lost meanwhile."""
        reports: dict[str, NodeReport | None] = {}
        with suppress(ChildError):  # Ray's client has ended the child process: no node is found, see below
            self.child.send((required, [node.id for node in self.nodes]))
            reports = self.child.receive()
        found = {node: report for node in self.nodes if (report := reports.get(node.id)) is not None}
        if not found:
            raise ConfigError(f"--ray-address: the cluster at {self.address} was lost while its nodes were checked")
        return found


def check_written(store: Store, name: str, report: NodeReport) -> None:
    """Add a fault to a node's report if the driver cannot read the blob that the node has written to the storage."""
    try:
        store.get(name)
    except FileNotFoundError:
        if not report.faults:
            report.faults.append("writes to another storage than the driver reads; it must be shared")


def connection_error(address: str, output: str) -> str:
    """Describe why the connection failed.

    Args:
        address: of the cluster.
        output: stdout and stderr of the child; Ray raises the same error class for all causes.
    """
    if "InvalidAuthToken" in output or "Unauthenticated" in output or "no authentication token was found" in output:
        return (
            f"the cluster at {address} refuses the token of this process; put the cluster's own into "
            "~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
        )
    if "Version mismatch" in output:
        found = [line.strip() for line in output.splitlines() if line.strip().startswith(("Ray: ", "Python: "))]
        return f"the cluster at {address} has other versions than this process ({', then '.join(found)}); use the same"
    if "Could not find any running Ray instance" in output:
        return "got auto, and no cluster runs on this machine; give host:port"
    return (
        f"what listens at {address} does not answer as a Ray cluster within {CONNECT_LIMIT_S:.0f} s; "
        "give host:port of the cluster's head, as its start script printed it"
    )


def describe_differences(expected: NodeReport, reports: dict[Node, NodeReport]) -> list[str]:
    """Return one line per node that differs; empty if none does.

    Compares versions and data with the driver, GPU memory with the largest GPU of the cluster.
    """
    found = []
    largest = max((mib for report in reports.values() for mib in report.gpu_mib), default=0)
    for node, report in reports.items():
        wrong = [
            f"has {name} {report.versions[name]}, here it is {version}"
            for name, version in expected.versions.items()
            if report.versions and report.versions.get(name) != version
        ]
        if report.data and report.data != expected.data:
            wrong.append(f"reads other data (fingerprint {report.data[:12]}, here it is {expected.data[:12]})")
        if report.gpu_mib and min(report.gpu_mib) < MIN_GPU_MEMORY_RATIO * largest:
            wrong.append(f"has a GPU of {min(report.gpu_mib)} MiB, others have {largest} MiB")
        if wrong or report.faults:
            found.append(f"{node} {', '.join(wrong + report.faults)}")
    return found
