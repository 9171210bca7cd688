"""Looking after finished studies: MLflow written again from the ledger, and a study removed whole."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import make_trial
from kept_study import begin, change, finished_study

from fgseg.config.errors import ConfigError
from scripts.chaos.rig import Server
from search import delete as deleting
from search import sync as syncing
from search.audit.trials import audit
from search.ledger.catalog import OWNER_FILE, open_ledger, write_owner_file
from search.ledger.study_metadata import StudyMetadata
from search.study.location import REGISTERED, StudyLocation, find_location, resolve_location
from search.study.plan import make_plan
from search.tracking.client import TrackingError
from search.tracking.optuna_studies import DATABASE
from search.tracking.run_reader import read_runs

pytestmark = pytest.mark.slow

CLOSED = "http://127.0.0.1:9"
"""The discard port, on which nothing listens."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with two finished studies, s and t; MLflow's migrations are run once for all tests."""
    storage = tmp_path_factory.mktemp("original") / "runs"
    finished_study(storage)
    finished_study(storage, "t")
    return storage


@pytest.fixture
def location(original: Path, tmp_path: Path) -> StudyLocation:
    """Study s in a copy of it."""
    shutil.copytree(original, tmp_path / "runs")
    return find_location(tmp_path / "runs", "s")


def clean(location: StudyLocation) -> None:
    """Both studies must pass the audit."""
    for study in ("s", "t"):
        assert audit(location.storage, study, location.tracking_uri) == []


def damage(location: StudyLocation) -> None:
    """Double a point in MLflow, which no sync can mend."""
    change(
        Path(location.storage) / "mlflow.db",
        "INSERT INTO metrics SELECT key, value, timestamp + 1, run_uuid, step, is_nan FROM metrics WHERE step = 1",
    )
    assert audit(location.storage, "s") != []


def call(command: Any, location: StudyLocation, *arguments: str) -> int:
    """The exit code of a command line about the study."""
    return command.main(["--study", location.study, "--storage", location.storage, *arguments])


def test_sync_sends_what_mlflow_lacks_and_says_so(location: StudyLocation, capsys: pytest.CaptureFixture[str]):
    change(Path(location.storage) / "mlflow.db", "DELETE FROM metrics WHERE step = 2")
    change(Path(location.storage) / "mlflow.db", "UPDATE runs SET status = 'RUNNING'")
    assert call(syncing, location) == 0
    assert capsys.readouterr().out.startswith("study s: MLflow at sqlite:///")
    assert audit(location.storage, "s") == []


def test_sync_keeps_the_report_with_the_study(location: StudyLocation):
    (Path(location.folder) / "report").mkdir()
    (Path(location.folder) / "report" / "report.md").write_text("# s")
    (Path(location.storage) / "mlflow.db").unlink()
    syncing.sync(location)
    assert [path.read_text() for path in Path(location.storage).glob("mlartifacts/*/artifacts/report/report.md")] == [
        "# s"
    ]


def test_sync_twice_changes_nothing(location: StudyLocation):
    syncing.sync(location)
    before = read_runs(location.tracking_uri, "s", open_ledger(location).metadata.uid)
    syncing.sync(location)
    assert read_runs(location.tracking_uri, "s", open_ledger(location).metadata.uid) == before


def test_rebuild_mends_what_sync_cannot_and_keeps_the_old_database(
    location: StudyLocation, capsys: pytest.CaptureFixture[str]
):
    for number in (1, 2):
        damage(location)
        assert call(syncing, location, "--rebuild") == 0
        backup = Path(location.storage) / f"mlflow.db.bak{number}"
        assert (
            f"into a new {Path(location.storage) / 'mlflow.db'}; the old database is now {backup}"
            in capsys.readouterr().out
        )
        assert backup.is_file()
        clean(moved(location, f"moved{number}"))
    assert {path.name for path in Path(location.storage).glob("*rebuild*")} == set()


def moved(location: StudyLocation, name: str) -> StudyLocation:
    """A copy elsewhere: MLflow's client keeps connections to the file that had this address before."""
    shutil.copytree(Path(location.storage), Path(location.storage).parent / name)
    return find_location(Path(location.storage).parent / name, location.study)


def test_rebuild_that_was_killed_leaves_the_old_database_and_starts_again(
    location: StudyLocation, monkeypatch: pytest.MonkeyPatch
):
    before = (Path(location.storage) / "mlflow.db").read_bytes()
    with monkeypatch.context() as killed:
        killed.setattr("search.tracking.sync.move_aside", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            syncing.rebuild(location)
    assert (Path(location.storage) / "mlflow.db").read_bytes() == before
    again = moved(location, "again")
    syncing.rebuild(again)
    clean(again)


def test_rebuild_lets_the_next_run_register_the_models_again(location: StudyLocation):
    note = Path(location.folder) / "model" / REGISTERED
    note.parent.mkdir()
    note.write_text(location.tracking_uri)
    syncing.rebuild(location)
    assert not note.exists()


def test_rebuild_moves_an_unfinished_write_along_with_its_database(location: StudyLocation):
    (Path(location.storage) / "mlflow.db-journal").touch()
    syncing.rebuild(location)
    assert (Path(location.storage) / "mlflow.db.bak1-journal").exists()
    assert not (Path(location.storage) / "mlflow.db-journal").exists()


def test_rebuild_names_the_study_of_the_storage_that_was_never_started(location: StudyLocation):
    change(Path(location.storage) / "t" / "study.db", "UPDATE fgsearch_studies SET metadata = '{}'")
    with pytest.raises(ConfigError, match="study t was never started"):
        syncing.rebuild(location)


@pytest.mark.parametrize("study", ["s", "t"])
def test_rebuild_touches_nothing_while_a_study_of_the_storage_is_in_use(location: StudyLocation, study: str):
    with open_ledger(find_location(location.storage, study)).lock() as lock:
        lock._token = "another driver's"
        with pytest.raises(ConfigError, match=f"study {study} is in use by process"):
            syncing.rebuild(location)
    assert not list(Path(location.storage).glob("*.bak*"))


@pytest.mark.parametrize("command", [syncing, deleting])
def test_study_in_use_is_left_alone(location: StudyLocation, command: Any, capsys: pytest.CaptureFixture[str]):
    with open_ledger(location).lock():
        assert call(command, location) == 2
    assert "study s is in use by process" in capsys.readouterr().err
    clean(location)


def test_settings_of_a_trial_are_those_that_its_own_run_wrote(tmp_path: Path):
    plan = make_plan("bas_cp", "configs/quickstart.yaml", {"train.lr": 1e-3}, {}, None)
    record = replace(
        make_trial(3, params={"loss.ssim": 0.25, "copy_paste.prob": 0.9}), overrides={"train.batch_size": 1}
    )
    ledger = begin(tmp_path)
    ledger.record_run(StudyMetadata(settings=plan.settings.flat(), budget=1))
    missing = plan.space.search.keys() - record.params.keys()
    record = replace(record, params=record.params | {key: plan.space.start[key] for key in missing})
    assert ledger.metadata.trial_settings(record) == plan.trial_settings(record)


def test_study_without_a_card_has_nothing_to_send(location: StudyLocation, capsys: pytest.CaptureFixture[str]):
    change(Path(location.folder) / "study.db", "UPDATE fgsearch_studies SET metadata = '{}'")
    assert call(syncing, location) == 2
    assert "study s was never started" in capsys.readouterr().err


def test_server_out_of_reach_is_told_in_one_line_and_nothing_is_deleted(
    location: StudyLocation, capsys: pytest.CaptureFixture[str]
):
    assert call(syncing, location, "--tracking-uri", CLOSED) == 1
    assert call(deleting, location, "--tracking-uri", CLOSED, "--yes") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: MLflow at {CLOSED}: ConnectionRefusedError")
    assert "nothing was deleted; with --no-tracking its runs stay there" in second
    clean(location)


def test_deleted_study_leaves_nothing_behind_and_the_other_one_whole(
    location: StudyLocation, capsys: pytest.CaptureFixture[str]
):
    uid = open_ledger(location).metadata.uid
    assert call(deleting, location, "--yes") == 0
    assert capsys.readouterr().out.startswith("study s is deleted")
    assert not Path(location.folder).exists()
    assert read_runs(location.tracking_uri, "s", uid) == []
    assert audit(location.storage, "t") == []


def test_deleting_asks_and_takes_no_for_an_answer(
    location: StudyLocation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "")
    assert call(deleting, location) == 1
    assert capsys.readouterr().out == "nothing was deleted\n"
    assert asked[0].startswith(
        f"delete study s: 3 trials, 0 MiB in {location.folder}, and its runs in MLflow at sqlite"
    )
    clean(location)


def test_end_of_input_means_no(location: StudyLocation, monkeypatch: pytest.MonkeyPatch):
    def end(question: str) -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", end)
    assert call(deleting, location) == 1
    clean(location)


def test_rebuild_that_is_declined_is_no_success(location: StudyLocation, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(syncing, "may_delete_runs", lambda location, yes: False)
    assert call(syncing, location, "--rebuild") == 1
    clean(location)


def test_deleting_a_study_that_was_never_started_leaves_the_runs_of_others_of_its_name(location: StudyLocation):
    change(Path(location.folder) / "study.db", "UPDATE fgsearch_studies SET metadata = '{}', identity = NULL")
    (Path(location.folder) / OWNER_FILE).unlink(missing_ok=True)
    deleting.delete(location)
    assert not Path(location.folder).exists()
    assert len(read_runs(location.tracking_uri, "s", "")) == 4


def test_damaged_file_of_the_dashboard_is_told_and_mlflow_is_written_all_the_same(
    location: StudyLocation, capsys: pytest.CaptureFixture[str]
):
    file = Path(location.storage) / DATABASE
    file.write_bytes(b"no database" * 100)
    change(Path(location.storage) / "mlflow.db", "DELETE FROM metrics WHERE step = 3")
    assert call(syncing, location) == call(deleting, location, "--yes", "--no-tracking") == 1
    for line in capsys.readouterr().err.splitlines():
        assert (
            line.startswith(f"error: {file}: DatabaseError: ") and "delete that file, which search.sync writes" in line
        )
    assert audit(location.storage, "s") == []
    file.unlink()
    assert call(deleting, location, "--yes") == 0


def test_deleting_where_nobody_can_be_asked_needs_yes(location: StudyLocation, capsys: pytest.CaptureFixture[str]):
    assert call(deleting, location) == 2
    assert "cannot ask: delete study s: 3 trials" in capsys.readouterr().err
    clean(location)


def test_deleting_that_was_cut_short_is_completed_by_the_same_command(
    location: StudyLocation, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            deleting.delete(location)
    assert (Path(location.folder) / "study.db").exists()
    deleting.delete(location)
    assert not Path(location.folder).exists()


def test_deleting_a_study_of_another_ledger_leaves_the_files_of_its_name(location: StudyLocation, tmp_path: Path):
    there = resolve_location(str(tmp_path / "team"), "s", None, f"sqlite:///{tmp_path}/team.db")
    begin(tmp_path / "team")
    (tmp_path / "team" / "s" / "study.db").rename(tmp_path / "team.db")
    write_owner_file(there, open_ledger(there))
    mixed = replace(there, storage=location.storage)
    before = sorted(Path(location.folder).rglob("*"))
    for mark in (False, True):
        if mark:
            write_owner_file(location, open_ledger(location))
            before = sorted(Path(location.folder).rglob("*"))
        with pytest.raises(ConfigError, match=r"runs/s holds a study that is not in the ledger"):
            deleting.delete(mixed)
        assert sorted(Path(location.folder).rglob("*")) == before
    assert call(deleting, mixed, "--yes", "--ledger-url", str(mixed.shared_ledger)) == 2
    deleting.delete(there)
    assert not Path(there.folder).exists()


def test_deleting_does_not_follow_links_out_of_the_storage(location: StudyLocation, tmp_path: Path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (Path(location.folder) / "trials" / "link").symlink_to(tmp_path / "precious")
    deleting.delete(location)
    assert (tmp_path / "precious" / "file").exists()


def test_study_whose_folder_is_a_link_is_refused(location: StudyLocation, tmp_path: Path):
    Path(location.folder).rename(tmp_path / "elsewhere")
    Path(location.folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="--study: s is outside of"):
        find_location(location.storage, "s")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", ".hidden", "x" * 101])
def test_name_that_could_lead_elsewhere_is_refused(location: StudyLocation, name: str):
    with pytest.raises(ConfigError, match="it names a folder"):
        find_location(location.storage, name)


def test_new_study_of_a_deleted_name_starts_afresh_in_mlflow(location: StudyLocation):
    deleting.delete(location)
    begin(Path(location.storage))
    finished_study(Path(location.storage))
    assert [audit(location.storage, study, location.tracking_uri) for study in ("s", "t")] == [[], []]


@pytest.fixture
def server(tmp_path: Path, environment: dict[str, str]):
    """A real tracking server on a free port."""
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server", environment)
    server.start()
    yield server
    server.kill()


@pytest.mark.server
def test_server_is_written_rebuilt_and_cleared_of_one_study_only(location: StudyLocation, server: Any):
    there, other = (find_location(location.storage, study, server.uri) for study in ("s", "t"))
    for each in (there, other):
        syncing.sync(each)
    clean(there)
    with pytest.raises(ConfigError, match="cannot ask: delete the runs of s at http"):
        syncing.may_delete_runs(there, yes=False)
    assert syncing.may_delete_runs(there, yes=True)
    assert syncing.rebuild(there) == "4 runs deleted, and written again"
    clean(there)
    deleting.delete(there)
    assert audit(location.storage, "t", server.uri) == []
    server.kill()
    with pytest.raises(TrackingError):
        syncing.sync(other)
