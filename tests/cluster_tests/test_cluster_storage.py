"""A study whose files lie in a bucket and whose ledger is on a server, as on a cluster: the same guarantees hold."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket_server import VARIABLES, Bucket
from postgres_server import PASSWORD, Server
from real_search import TINY, Driver, replayed

from fgseg.storage.store import open_store
from search.audit.trials import audit
from search.delete import delete
from search.ledger.catalog import open_ledger
from search.ledger.database import study_id
from search.ledger.records import State
from search.run import main
from search.study.location import StudyLocation, find_location

# The fixture runs a search twice.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.usefixtures("only_cluster"),
]
SECRETS = (PASSWORD.encode(), PASSWORD.replace("%", "%25").replace("@", "%40").encode())
"""The password of the ledger as it is, and as it stands in the address."""


class Cluster:
    """Where everything of the study `small` is."""

    def __init__(self, bucket: Bucket, server: Server, folder: Path):
        self.folder = folder
        self.storage = bucket.address("searches")
        server.run("CREATE DATABASE team")
        self.ledger = server.address("team")
        self.tracking = f"sqlite:///{folder / 'tracking' / 'mlflow.db'}"
        self.options = ["--storage", self.storage, "--ledger-url", self.ledger, "--tracking-uri", self.tracking]

    @property
    def location(self) -> StudyLocation:
        return find_location(self.storage, "small", self.tracking, self.ledger)

    def start(self, environment: dict[str, str]) -> Driver:
        """A search that keeps its books and files here."""
        own = environment | VARIABLES | {"TMPDIR": str(self.folder / "tmp")}
        arguments = [*self.options, "--trials", "2", "--set", "train.epochs=2"]
        return Driver(self.folder / "driver" / "unused", own, *arguments, command=replayed)


@pytest.fixture(scope="module")
def cluster(bucket: Bucket, postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "tmp").mkdir()
    return Cluster(bucket, postgres, folder)


@pytest.fixture(scope="module")
def finished(cluster: Cluster, environment: dict[str, str]) -> Iterator[list[str]]:
    """The outputs of a search that was killed after its first epoch, and of the same command, which finished it."""
    driver = cluster.start(environment)
    driver.wait_for(r"epoch 1/2", limit_s=240)
    driver.kill()
    assert audit(cluster.storage, "small", cluster.tracking, cluster.ledger, interrupted=True) == []
    again = cluster.start(environment)
    assert again.finish(limit_s=300) == 0, again.output
    yield [driver.output, again.output]


def test_killed_search_is_finished_by_the_same_command_and_the_books_are_right(cluster: Cluster, finished: list[str]):
    assert audit(cluster.storage, "small", cluster.tracking, cluster.ledger, trials=2) == []
    trials = open_ledger(cluster.location).trials()
    assert [(t.number, t.state, len(t.epochs)) for t in trials] == [(n, State.COMPLETE, 2) for n in range(2)]
    assert max(t.attempt for t in trials) == 2


def test_nothing_of_the_study_lies_on_the_driver_s_disk(cluster: Cluster, finished: list[str]):
    names = open_store(cluster.location.folder).sizes().keys()
    assert {name.split("/")[0] for name in names} >= {"study.json", "trials", "report", "model"}
    assert [path.name for path in (cluster.folder / "driver").iterdir() if path.suffix != ".log"] == []


def test_password_of_the_ledger_is_nowhere(
    cluster: Cluster, finished: list[str], environment: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    assert main(["--list-studies", *cluster.options]) == 0
    small = [word for setting in TINY for word in ("--set", setting) if "copy_paste" not in setting]
    assert main(["--space", "bas", "--study", "other", "--dry-run", *cluster.options, *small]) == 0
    shown = capsys.readouterr()
    outputs = [text.encode() for text in (*finished, shown.out, shown.err)]
    store = open_store(cluster.storage)
    blobs = [store.get(name) for name in store.sizes()]
    folders = (cluster.folder, Path(environment["RAY_TMPDIR"]))  # Ray's logs know the command line
    files = [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(blobs) > 10 and len(files) > 3
    assert [text for text in (*outputs, *blobs, *files) if any(secret in text for secret in SECRETS)] == []
    assert b"postgresql://***@127.0.0.1" in outputs[1]


def test_files_of_another_ledger_are_not_taken_for_ours(
    cluster: Cluster, finished: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--space", "bas_cp", "--study", "small", "--tracking-uri", cluster.tracking]
    other = ["--storage", cluster.storage, "--ledger-url", f"sqlite:///{tmp_path}/other.db"]
    assert main([*arguments, *other]) == 2
    assert "holds a study that is not in the ledger sqlite" in capsys.readouterr().err


def test_deleting_the_study_leaves_neither_files_nor_books(cluster: Cluster, finished: list[str]):
    location = cluster.location
    delete(location)
    assert open_store(cluster.storage).sizes() == {}
    assert study_id(location.ledger_url, "small") is None
