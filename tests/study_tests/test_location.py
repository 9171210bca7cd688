"""Where a study may lie, and what is told when a place does not hold; each in one line, before any trial."""

import socket
import sys
import time
from pathlib import Path

import pytest
from bucket_server import Bucket
from kept_study import begin
from postgres_server import PASSWORD, Server

from fgseg.config.errors import ConfigError
from fgseg.storage.store import open_store
from search.audit.__main__ import main as audit
from search.ledger import database
from search.ledger.catalog import OWNER_FILE, check_ownership, open_ledger, write_owner_file
from search.ledger.database import check_database, study_id
from search.ledger.ledger import Ledger
from search.run import main
from search.study.location import StudyLocation, find_location, normal_ledger, public_address, resolve_location

BUCKET = "--storage=s3://studies/runs"
LEDGER = "--ledger-url=postgresql://user:secret@127.0.0.1:1/db"
TRACKING = "--tracking-uri=http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([BUCKET], "--storage: s3:// holds files only, so --ledger-url and --tracking-uri must be given"),
        ([BUCKET, TRACKING], "--storage: s3:// holds files only, so --ledger-url must be given"),
        ([BUCKET, LEDGER], "--storage: s3:// holds files only, so --tracking-uri must be given"),
        ([BUCKET, LEDGER, "--tracking-uri=postgresql://h/db"], "--tracking-uri: with an s3:// storage give an MLflow"),
        (
            ["--storage=gs://b/runs"],
            "--storage: gs:// is an unknown kind of storage; give a path or s3://bucket/prefix",
        ),
        (["--ledger-url=mysql://user:secret@h/db"], "--ledger-url: must be postgresql://USER@HOST/DATABASE or sqlite"),
        (["--ledger-url=postgresql://user:sec/ret@h/db"], "--ledger-url: must be postgresql://USER@HOST/DATABASE or"),
        (
            ["--tracking-uri=postgresql://user:sec/ret@h/db"],
            "--tracking-uri: / and @ in a user's name or password must",
        ),
        (["--ledger-url=sqlite:////nowhere/study.db"], "--ledger-url: the folder of sqlite:////nowhere/study.db does"),
        ([LEDGER], "--ledger-url: postgresql+psycopg://***@127.0.0.1:1/db cannot be used (connection failed: "),
    ],
)
def test_place_that_does_not_hold_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main(["--space=bas", f"--storage={tmp_path / 'runs'}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert "secret" not in error and "sec/ret" not in error
    assert not (tmp_path / "runs").exists()


def test_server_that_does_not_answer_is_given_up_in_half_a_minute(monkeypatch: pytest.MonkeyPatch):
    assert 3 * database.CONNECT_TIMEOUT_S < 30  # a name may stand for several addresses
    monkeypatch.setattr(database, "CONNECT_TIMEOUT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(ConfigError, match=r"cannot be used \(connection timeout expired\)"):
            check_database(f"postgresql+psycopg://h@127.0.0.1:{silent.getsockname()[1]}/db")
    assert time.monotonic() - started < 10


def test_missing_driver_of_postgresql_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"PostgreSQL needs psycopg; pip install 'fgsearch\[postgres\]'"):
        check_database("postgresql+psycopg://h/db")


@pytest.mark.server
def test_wrong_password_is_told_without_it(postgres: Server):
    address = normal_ledger(postgres.address("postgres")).replace("ge%25heim", "wrong")
    with pytest.raises(ConfigError, match="password authentication failed") as told:
        check_database(address)
    assert "wrong" not in str(told.value)


@pytest.mark.server
def test_password_may_come_from_the_environment(postgres: Server, monkeypatch: pytest.MonkeyPatch):
    address = f"postgresql+psycopg://fgsearch@127.0.0.1:{postgres.port}/postgres"
    monkeypatch.setenv("PGPASSWORD", "another")
    with pytest.raises(ConfigError, match="password authentication failed"):
        check_database(address)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    check_database(address)
    assert study_id(address, "s") is None


@pytest.mark.parametrize("address", ["postgres://u@h/d", "postgresql://u@h/d", "postgresql+psycopg://u@h/d"])
def test_every_spelling_of_an_address_is_one_ledger(address: str):
    assert normal_ledger(address) == "postgresql+psycopg://u@h/d"


@pytest.mark.server
def test_study_in_a_bucket_that_does_not_exist_is_told(bucket: Bucket, capsys: pytest.CaptureFixture[str]):
    storage = bucket.address("runs").replace("studies", "nowhere")
    places = ["--storage", storage, "--ledger-url=sqlite:////tmp/none.db", TRACKING]
    assert audit(["--study=s", *places]) == 2
    assert capsys.readouterr().err == "error: --storage: there is no bucket nowhere; create it first\n"


def test_password_in_a_query_is_masked():
    address = normal_ledger("postgresql://h/d?user=u&password=secret&sslmode=require")
    assert public_address(address) == "postgresql+psycopg://h/d?user=u&password=***&sslmode=require"


@pytest.fixture
def shared(tmp_path: Path) -> StudyLocation:
    """A study of a ledger beside its storage, begun and marked."""
    begin(tmp_path / "runs").next_attempt()
    (tmp_path / "runs" / "s" / "study.db").rename(tmp_path / "team.db")
    location = find_location(tmp_path / "runs", "s", None, f"sqlite:///{tmp_path}/team.db")
    write_owner_file(location, open_ledger(location))
    return location


def elsewhere(location: StudyLocation, storage: str) -> StudyLocation:
    """The same study in another storage."""
    return resolve_location(storage, location.study, None, location.shared_ledger)


def test_marked_folder_is_the_study_s_own_also_after_it_was_moved(shared: StudyLocation, tmp_path: Path):
    check_ownership(shared, open_ledger(shared))
    Path(shared.storage).rename(tmp_path / "moved")
    moved = elsewhere(shared, str(tmp_path / "moved"))
    ledger = open_ledger(moved)
    check_ownership(moved, ledger)
    assert ledger.metadata.uid in open_store(moved.folder).get(OWNER_FILE).decode()


def test_study_of_a_shared_ledger_is_not_continued_without_its_files(shared: StudyLocation, tmp_path: Path):
    other = elsewhere(shared, str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match=r"^--storage: the files of study s are not in .*/empty/s; give the storage"):
        check_ownership(other, open_ledger(other))


def test_files_of_a_study_that_the_ledger_does_not_know_are_not_taken(shared: StudyLocation, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"^--storage: .*/runs/s holds a study that is not in the ledger"):
        check_ownership(resolve_location(shared.storage, "s", None, f"sqlite:///{tmp_path}/other.db"), None)
    open_store(shared.folder).delete(OWNER_FILE)
    open_store(shared.folder).put("trials/0/attempt-000001", b"")
    with pytest.raises(ConfigError, match=r"holds a study that is not in the ledger"):
        check_ownership(resolve_location(shared.storage, "s", None, f"sqlite:///{tmp_path}/other.db"), None)


def test_studies_of_a_shared_ledger_are_listed_from_it(
    shared: StudyLocation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["--list-studies", f"--ledger-url={shared.shared_ledger}"]) == 0
    assert capsys.readouterr().out.split()[-6:] == ["s", "0", "0", "0", "1", "-"]
    with pytest.raises(ConfigError, match=r"no study t in sqlite:///.*team\.db; there are: s$"):
        open_ledger(resolve_location(shared.storage, "t", None, shared.shared_ledger))


def test_list_of_studies_takes_the_storage_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    begin(tmp_path / "there", "mine")
    config = tmp_path / "mine.yaml"
    config.write_text(f"search: {{storage: {tmp_path / 'there'}}}")
    assert main(["--list-studies", f"--config={config}"]) == 0
    assert "mine" in capsys.readouterr().out


def test_erased_study_leaves_the_others_of_its_ledger(tmp_path: Path):
    for name in ("a", "b"):
        Ledger.create(f"sqlite:///{tmp_path}/team.db", name)
    ledger = Ledger(f"sqlite:///{tmp_path}/team.db", "a")
    ledger.delete_study()
    ledger.delete_study()
    assert database.list_studies(f"sqlite:///{tmp_path}/team.db") == ["b"]
