"""What several tests share: small settings, and places that are theirs alone."""

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import psutil
import pytest
import torch
from filelock import FileLock

from fgseg.config.loading import Layer, build
from fgseg.config.settings import RunConfig

if TYPE_CHECKING:
    from bucket_server import Bucket
    from postgres_server import Server

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # `scripts` is never installed; where `fgseg` and `search` are, those are tested

TINY = {
    "data.height": 64,
    "data.width": 128,
    "data.train": 6,
    "data.val": 4,
    "data.test": 4,
    "train.epochs": 3,
    "train.lr": 3e-3,
    "loss.ssim": 0.4,
    "loss.soft_iou": 0.5,
    "copy_paste.prob": 0.5,
    "train.compile": "off",  # where there is a GPU as well: compiling takes longer than these trainings
}


FIRST = (
    *("quickstart", "cluster", "faults", "browser", "distributed", "worker_faults", "cluster_storage", "chaos"),
    "compare",
)
"""The longest modules, in the order in which the processes of pytest-xdist begin them.

The browser's tests need the quickstart to have ended, and one module at a time starts clusters of several nodes.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of fixtures that start a server or Ray, and put the longest modules first, for pytest-xdist."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if names & {"postgres", "bucket"}:
            item.add_marker("server")
        if "quickstart" in names:
            item.add_marker("ray")
    with_ray = {item.path for item in items if item.get_closest_marker("ray")}

    def position(item: pytest.Item) -> tuple[int, bool]:
        module = item.path.stem.removeprefix("test_")
        return FIRST.index(module) if module in FIRST else len(FIRST), item.path not in with_ray

    items.sort(key=position)
    gc.freeze()  # else every full collection traverses all modules, which takes a quarter of a second


@pytest.fixture(scope="session", autouse=True)
def cpu_only() -> Iterator[str | None]:
    """Tests and the processes that they start see no GPU, so that they are the same everywhere.

    The value is that of CUDA_VISIBLE_DEVICES before.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    with pytest.MonkeyPatch.context() as patch:
        if torch.cuda.is_available():
            torch.cuda.init()
            torch.cuda.device_count()  # remembered, for those tests that ask for `gpu`
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            patch.setattr(torch.cuda, "is_available", lambda: False)
        yield visible


@pytest.fixture(scope="session")
def common_temp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all processes of pytest-xdist use."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def empty_databases(common_temp: Path) -> Callable[[str], Path]:
    """Give the path of an empty `mlflow.db` or `optuna.db`, made once: many tests need one, which takes a second."""
    from search.tracking.client import create_database, fill_database

    folder = common_temp / "empty-databases"

    def fill(address: str) -> None:
        if "mlflow.db" in address:
            fill_database(address, str(folder / "artifacts"))
        else:
            optuna.storages.RDBStorage(address).engine.dispose()

    def path_of(name: str) -> Path:
        create_database(f"sqlite:///{folder / name}", fill)
        return folder / name

    return path_of


@pytest.fixture(scope="session", autouse=True)
def migrations_once(empty_databases: Callable[[str], Path]) -> Iterator[None]:
    """Copy the empty databases instead of migrating.  `start` does so for its commands; other commands migrate."""
    from sqlalchemy.engine import make_url

    from search.tracking.client import create_database

    def create(name: str, uri: str, fill: Callable[[str], None]) -> None:
        create_database(uri, lambda whole: shutil.copy(empty_databases(name), str(make_url(whole).database)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.tracking.run_writer.create_database", partial(create, "mlflow.db"))
        patch.setattr("search.tracking.optuna_studies.create_database", partial(create, "optuna.db"))
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums are taken in another order on another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gpu(cpu_only: str | None, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU; without one the test is skipped, whose CPU twin runs everywhere.

    The processes in which Inductor compiles see it as well.
    """
    if not torch.cuda.is_initialized():
        pytest.skip("needs a GPU; its CPU twin runs everywhere")
    if cpu_only is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", cpu_only)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return torch.device("cuda")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of decoded frames, never the user's own."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny(cache: str):
    """A run of three epochs on six scenes of 64x128; keyword arguments `section__name` change settings."""

    def make(**changes: Any) -> RunConfig:
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return build([Layer("tiny", TINY | {"data.cache": cache} | changes)])

    return make


def absent(reason: str) -> None:
    """Skip a test for want of something; where everything is promised to be there, fail it."""
    if os.environ.get("FGSEARCH_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason}, and FGSEARCH_REQUIRE_ALL=1 promises it")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Server]":
    """A PostgreSQL server of the tests' own."""
    from postgres_server import binaries, running_server

    programs = binaries()
    if programs is None:
        absent("no PostgreSQL server is installed (Debian's package postgresql)")
        return
    with running_server(programs) as server:
        yield server


@pytest.fixture(scope="session")
def bucket() -> "Iterator[Bucket]":
    """A bucket of the tests' own, and the variables that open it."""
    from bucket_server import VARIABLES, running_bucket

    with pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        with running_bucket() as bucket:
            yield bucket


@pytest.fixture
def shared() -> Path:
    """The folder of real frames and weights beside the checkout; the test is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the real frames are not on this machine")
    return folder


LIMIT_S = 2400
"""Seconds after which a command or a test of the whole product counts as hanging, on a machine with other work too."""


@dataclass(frozen=True)
class Finished:
    """A run of a command that has ended."""

    code: int
    output: str
    cpu_s: float
    """Processor seconds of the command and everything it started, sampled twice a second."""
    storage: Path
    folder: Path
    """The folder in which it was started."""


def wait_for_end(process: "subprocess.Popen[str]", limit_s: float) -> float:
    """Wait until a process ends; returns the processor seconds of it and its descendants.

    Raises TimeoutExpired, after killing them all, when it takes longer than `limit_s` seconds.
    """
    ends, spent = time.monotonic() + limit_s, {}
    while process.poll() is None:
        family = []
        with suppress(psutil.Error):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            with suppress(psutil.Error):
                spent[member] = sum(member.cpu_times()[:2])
        if time.monotonic() > ends:
            for member in family:
                with suppress(psutil.Error):
                    member.kill()
            process.wait()
            raise subprocess.TimeoutExpired(process.args, limit_s)
        time.sleep(0.5)
    return sum(spent.values())


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables for commands under test: this checkout, a Ray folder and a cache of their own."""
    ray = tempfile.mkdtemp(prefix="fg-", dir="/tmp")  # a socket's path may have 107 characters only
    own = {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": ray, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("user-cache"))}
    own["OMP_WAIT_POLICY"] = "PASSIVE"  # see .ci/run
    yield os.environ | own
    shutil.rmtree(ray, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_sessions() -> set[Path]:
    """The folders of the Ray sessions that finished tests have started."""
    return set()


@pytest.fixture(autouse=True)
def ray_is_marked(request: pytest.FixtureRequest, ray_sessions: set[Path]) -> Iterator[None]:
    """Fail a test that starts Ray without the marker `ray`."""
    yield
    if "environment" not in request.fixturenames:
        return
    folder = Path(request.getfixturevalue("environment")["RAY_TMPDIR"])
    started = set(folder.glob("ray/session_*")) - ray_sessions
    ray_sessions |= started
    if started and request.node.get_closest_marker("ray") is None:
        pytest.fail("the test starts Ray and lacks the marker: add @pytest.mark.ray")


@pytest.fixture(scope="session")
def search(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory):
    """Run `python -m search.run` to its end, in an empty folder."""

    def run(storage: Path, *arguments: str, limit_s: float = LIMIT_S / 2) -> Finished:
        folder, log = tmp_path_factory.mktemp("current"), tmp_path_factory.mktemp("log") / "output"
        command = [sys.executable, "-m", "search.run", *arguments, "--storage", str(storage)]
        with log.open("w") as out:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, text=True
            )
            cpu_s = wait_for_end(process, limit_s)
        return Finished(process.returncode, log.read_text(), cpu_s, storage, folder)

    return run


@pytest.fixture(scope="module")
def start(environment: dict[str, str], empty_databases: Callable[[str], Path]):
    """Start a search in a storage; whatever still runs at the end of the module is killed by its own id."""
    from real_search import Driver

    drivers: list[Driver] = []

    def begin(storage: Path, *arguments: str, variables: dict[str, str] | None = None, **options: Any) -> Driver:
        storage.mkdir(parents=True, exist_ok=True)
        for name in {"mlflow.db", "optuna.db"} - {path.name for path in storage.iterdir()}:
            shutil.copy(empty_databases(name), storage)
        drivers.append(Driver(storage, environment | (variables or {}), *arguments, **options))
        return drivers[-1]

    yield begin
    for driver in drivers:
        if driver.process.poll() is None:
            driver.kill()


@pytest.fixture(scope="session")
def quickstart(search, common_temp: Path) -> Finished:
    """The README's main command, run once for every test that looks at what it leaves."""
    folder = common_temp / "quickstart"
    with FileLock(common_temp / "quickstart.lock"):
        if not folder.exists():
            finished = search(folder / "runs", "--space", "bas_cp")
            (folder / "finished.json").write_text(json.dumps(asdict(finished), default=str))
    values = json.loads((folder / "finished.json").read_text())
    return Finished(**values | {"storage": Path(values["storage"]), "folder": Path(values["folder"])})


@pytest.fixture(scope="module")
def only_cluster(common_temp: Path) -> Iterator[None]:
    """Let one module at a time start clusters of several nodes, whose workers use the same ports."""
    with FileLock(common_temp / "cluster.lock"):
        yield


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a finished study; MLflow's migrations are run once for all tests of the audit."""
    from kept_study import finished_study

    storage = tmp_path_factory.mktemp("original") / "runs"
    finished_study(storage)
    return storage


@pytest.fixture
def location(original: Path, tmp_path: Path):
    """A copy of it to be broken."""
    from search.study.location import find_location

    shutil.copytree(original, tmp_path / "runs")
    return find_location(tmp_path / "runs", "s")
