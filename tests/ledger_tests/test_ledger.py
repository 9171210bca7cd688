"""The ledger: what it hands out, what it keeps, and that repeating or interrupting any call harms nothing."""

import math
import sys
import threading
from pathlib import Path

import pytest
from builders import make_epoch
from optuna.distributions import FloatDistribution
from small_ledger import kill_before, start_search
from sqlalchemy import text, update
from sqlalchemy.exc import OperationalError

from fgseg.results import EpochResult, SupersededError
from search.ledger.database import LedgerError, open_engine, study_id
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialAttempt
from search.ledger.study_metadata import StudyMetadata
from search.ledger.tables import STUDIES, TABLES
from search.ledger.transaction import Transaction

SPACE = {"copy_paste.prob": FloatDistribution(0.0, 1.0), "loss.ssim": FloatDistribution(0.05, 5.0, log=True)}
START = {"copy_paste.prob": 0.5, "loss.ssim": 0.4}


def result(epoch: int, miou: float, attempt: int = 1) -> EpochResult:
    """An epoch with this mIoU."""
    iou = {"fence": miou, "pole": math.nan}
    return make_epoch(epoch, miou, iou=iou, attempt=attempt)


def history(*mious: float) -> list[EpochResult]:
    """Epochs from 1 with these mIoUs."""
    return [result(epoch, miou) for epoch, miou in enumerate(mious, start=1)]


def url_in(folder: Path) -> str:
    """The address of the test's database."""
    folder.mkdir(exist_ok=True)
    return f"sqlite:///{folder}/study.db"


@pytest.fixture(autouse=True, params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on either kind of database."""
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        monkeypatch.setattr(sys.modules[__name__], "url_in", server.database)


def drive(folder: Path, trials: int = 8, sampler: str = "random", pruner: str = "none", **changes: object) -> Ledger:
    """A ledger as a fresh driver opens it."""
    ledger = Ledger.create(url_in(folder), "s")
    settings = {"epochs": 3, "seed": 42, "select": "last"} | changes
    start_search(ledger, SPACE, START, trials=trials, sampler=sampler, pruner=pruner, **settings)
    return ledger


def take(ledger: Ledger) -> TrialAttempt:
    """The next start, which must exist."""
    ask = ledger.next_attempt()
    assert ask is not None
    return ask


def finish(ledger: Ledger, miou: float = 0.4) -> TrialAttempt:
    """Ask a trial and complete it."""
    ask = take(ledger)
    ledger.report(ask.number, ask.attempt, history(miou))
    ledger.complete(ask.number, ask.attempt)
    return ask


def test_trial_0_is_the_start_point_also_after_a_second_start(tmp_path):
    drive(tmp_path)
    ledger = drive(tmp_path)
    assert take(ledger) == TrialAttempt(0, 1, START)
    assert take(ledger).params != START


def test_looking_for_a_study_creates_nothing(tmp_path):
    assert study_id(url_in(tmp_path), "s") is None
    with pytest.raises(LookupError, match="no study s"):
        Ledger(url_in(tmp_path), "s")
    assert list(tmp_path.iterdir()) == []


def test_a_study_exists_under_its_own_name_only(tmp_path):
    drive(tmp_path)
    assert study_id(url_in(tmp_path), "s") is not None
    assert study_id(url_in(tmp_path), "other") is None


def test_an_empty_database_file_holds_no_study(tmp_path):
    (tmp_path / "study.db").touch()
    assert study_id(url_in(tmp_path), "s") is None


def test_the_identity_and_uid_are_those_first_written_down(tmp_path):
    ledger = Ledger.create(url_in(tmp_path), "s")
    ledger.record_run(StudyMetadata(title="BAS", identity={"space": "bas"}, budget=4))
    uid = ledger.metadata.uid
    again = Ledger.create(url_in(tmp_path), "s")
    again.record_run(StudyMetadata(title="SLC", identity={"space": "slc"}, budget=8))
    now = again.metadata
    assert (now.identity, now.uid, now.title, now.budget) == ({"space": "bas"}, uid, "SLC", 8)


def test_fewest_kept_checkpoints_of_all_runs_are_recorded(tmp_path):
    ledger = Ledger.create(url_in(tmp_path), "s")
    seen = []
    for keep in (3, 1, 2):
        ledger.record_run(StudyMetadata(keep_checkpoints=keep))
        seen.append(ledger.metadata.keep_checkpoints)
    assert seen == [3, 1, 1]


def test_an_accepted_change_replaces_the_identity_and_is_noted(tmp_path):
    ledger = drive(tmp_path)
    ledger.record_run(StudyMetadata(identity={"space": "bas"}, budget=4))
    finish(ledger)
    take(ledger)
    for _ in range(2):  # as after a lost answer of the database
        ledger.accept_changes({"space": "slc"}, "space: bas there, slc now", when=5.0)
    assert Ledger(url_in(tmp_path), "s").metadata.identity == {"space": "slc"}
    noted = ledger.metadata.changes
    assert [(n["when"], n["changes"], n["ended"]) for n in noted] == [(5.0, "space: bas there, slc now", [0])]


def test_a_ledger_opened_for_reading_names_the_call_to_make_before_asking(tmp_path):
    drive(tmp_path)
    with pytest.raises(RuntimeError, match=r"call start\(\) first"):
        Ledger(url_in(tmp_path), "s").next_attempt()


def test_every_write_twice_is_harmless(tmp_path):
    ledger = drive(tmp_path)
    ask = take(ledger)
    for epochs in (history(0.2), history(0.2, 0.3), history(0.2, 0.3), history(0.2, 0.3, 0.4)):
        ledger.report(ask.number, 1, epochs)
    ledger.complete(ask.number, 1)
    first = ledger.trial(0)
    ledger.report(ask.number, 1, history(0.2, 0.3, 0.4))
    ledger.complete(ask.number, 1)
    ledger.prune(ask.number, 1)
    ledger.fail(ask.number, 1, "late")
    assert ledger.process_died(ask.number, 1, "late", 2) is False
    assert ledger.trial(0) == first == Ledger(url_in(tmp_path), "s").trial(0)
    assert (first.state, first.value, first.reason, len(first.epochs)) == (State.COMPLETE, 0.4, None, 3)


def test_a_recorded_epoch_is_not_replaced(tmp_path):
    ledger = drive(tmp_path)
    take(ledger)
    ledger.report(0, 1, history(0.2))
    ledger.report(0, 1, history(0.9, 0.3))
    assert [epoch.miou for epoch in ledger.trial(0).epochs] == [0.2, 0.3]


def test_write_that_was_killed_stores_nothing(tmp_path, monkeypatch):
    ledger = drive(tmp_path)
    take(ledger)
    with monkeypatch.context() as killed:
        kill_before(killed, "add_epoch")
        with pytest.raises(KeyboardInterrupt):
            ledger.report(0, 1, history(0.2))
    again = drive(tmp_path)
    assert (ledger.trial(0).epochs, again.trial(0).epochs) == ([], [])
    again.report(0, take(again).attempt, history(0.2))
    assert [epoch.miou for epoch in again.trial(0).epochs] == [0.2]


def test_a_trial_read_by_its_writer_is_what_another_process_reads(tmp_path):
    writer = drive(tmp_path, trials=4)

    def same() -> bool:
        return [str(writer.trial(0))] == [str(record) for record in Ledger(url_in(tmp_path), "s").trials()]

    ask = take(writer)
    for epochs in ((0.2,), (0.2, 0.3), (0.2,)):
        writer.report(0, ask.attempt, history(*epochs))
        assert same() and len(writer.trial(0).epochs) == max(len(epochs), len(writer.trial(0).epochs))
    writer.override(0, ask.attempt, {"train.batch_size": 1})
    assert same() and writer.trial(0).overrides
    writer.process_died(0, ask.attempt, "its process died", max_failures=2)
    assert same() and writer.trial(0).failures == 1
    writer.complete(0, ask.attempt)
    assert same() and writer.trial(0).state is State.COMPLETE


def test_a_history_with_a_gap_is_refused(tmp_path):
    ledger = drive(tmp_path)
    take(ledger)
    with pytest.raises(ValueError, match=r"got epochs \[2\], must be 1\.\.1"):
        ledger.report(0, 1, [result(2, 0.3)])


@pytest.mark.parametrize("write", ["report", "complete", "prune", "fail"])
def test_an_attempt_that_is_not_current_may_not_write(tmp_path, write):
    take(drive(tmp_path))
    ledger = drive(tmp_path)
    assert take(ledger).attempt == 2
    more = {"report": [history(0.9)], "fail": ["broken"]}.get(write, [])
    with pytest.raises(SupersededError, match="attempt 1 is superseded by 2"):
        getattr(ledger, write)(0, 1, *more)
    assert (ledger.trial(0).state, ledger.trial(0).epochs) == (State.RUNNING, [])


def test_the_death_of_a_superseded_attempt_counts_for_nothing(tmp_path):
    take(drive(tmp_path))
    ledger = drive(tmp_path)
    take(ledger)
    assert ledger.process_died(0, 1, "killed", max_failures=0) is True
    assert (ledger.trial(0).state, ledger.trial(0).failures) == (State.RUNNING, 0)


def test_a_late_report_to_an_ended_trial_is_refused_if_it_brings_news(tmp_path):
    ledger = drive(tmp_path)
    take(ledger)
    ledger.report(0, 1, history(0.2))
    ledger.fail(0, 1, "broken")
    ledger.report(0, 1, history(0.2))
    with pytest.raises(SupersededError, match="has ended"):
        ledger.report(0, 1, history(0.2, 0.3))


@pytest.mark.parametrize("other", [lambda ledger: ledger.fail(0, 1, "ended by another driver"), take])
def test_a_trial_that_another_driver_ends_or_restarts_under_our_hands_is_told_as_superseded(
    tmp_path, monkeypatch, other
):
    ledger = drive(tmp_path)
    take(ledger)
    stale = ledger.trial(0)
    other(drive(tmp_path))
    monkeypatch.setattr(ledger, "trial", lambda number: stale)
    with pytest.raises(SupersededError, match="another driver"):
        ledger.report(0, 1, history(0.2))
    assert Ledger(url_in(tmp_path), "s").trial(0).epochs == []


def test_a_write_changes_no_trial_of_another_study_in_the_same_database(tmp_path):
    other = Ledger.create(url_in(tmp_path), "t")
    settings = {"trials": 8, "sampler": "random", "pruner": "asha", "epochs": 3, "seed": 42}
    start_search(other, SPACE, START, **settings)
    ledger = drive(tmp_path, pruner="asha")
    for each in (other, ledger):
        take(each)
        each.report(0, 1, history(0.2))
    before = str(Ledger(url_in(tmp_path), "t").trials())
    ledger.should_prune(0)
    ledger.report(0, 1, history(0.2, 0.3))
    ledger.fail(0, 1, "broken")
    assert str(Ledger(url_in(tmp_path), "t").trials()) == before


def test_a_recorded_decision_stays_though_the_pruner_has_changed(tmp_path):
    ledger = drive(tmp_path, pruner="asha")
    for number, miou in enumerate((0.5, 0.4)):
        take(ledger)
        ledger.report(number, 1, history(miou))
    assert [ledger.should_prune(number) for number in (0, 1)] == [False, True]
    assert drive(tmp_path, pruner="median").should_prune(1) is True


def test_a_trial_whose_latest_miou_is_not_a_number_is_not_pruned(tmp_path):
    ledger = drive(tmp_path, pruner="asha")
    for number, mious in enumerate(((0.5,), (0.1, math.nan))):
        take(ledger)
        ledger.report(number, 1, history(*mious))
        assert ledger.should_prune(number) is False


def test_a_trial_that_continues_with_more_epochs_has_their_number(tmp_path):
    take(drive(tmp_path))
    ledger = drive(tmp_path, epochs=5)
    take(ledger)
    assert ledger.trial(0).length == 5


def test_a_superseded_attempt_cannot_be_rescheduled(tmp_path):
    ledger = drive(tmp_path)
    take(ledger)
    ledger.reschedule(0, 1)
    assert take(ledger).attempt == 2
    ledger.reschedule(0, 1)
    assert take(ledger).number == 1


@pytest.mark.parametrize("asked", [0, 1])
def test_trial_whose_recording_was_killed_is_suggested_again(tmp_path, monkeypatch, asked):
    ledger = drive(tmp_path)
    for _ in range(asked):
        finish(ledger)
    with monkeypatch.context() as killed:
        kill_before(killed, "add_trial")
        with pytest.raises(KeyboardInterrupt):
            ledger.next_attempt()
    assert len(ledger.trials()) == asked
    whole = drive(tmp_path / "whole")
    for _ in range(asked):
        finish(whole)
    assert take(drive(tmp_path)) == take(whole)


def test_open_trials_continue_under_their_numbers_and_points_before_new_ones(tmp_path):
    ledger = drive(tmp_path, trials=4)
    asks = [take(ledger) for _ in range(3)]
    ledger.report(1, 1, history(0.1))
    ledger.complete(1, 1)
    again = drive(tmp_path, trials=4)
    assert again.open_trials() == [0, 2]
    assert [take(again) for _ in range(2)] == [TrialAttempt(n, 2, asks[n].params) for n in (0, 2)]
    assert (take(again).number, again.next_attempt()) == (3, None)


def test_the_budget_counts_failed_trials(tmp_path):
    ledger = drive(tmp_path, trials=2)
    for number in range(2):
        assert not ledger.nothing_left()
        take(ledger)
        ledger.fail(number, 1, "broken")
    assert ledger.next_attempt() is None
    assert ledger.nothing_left()


def test_a_larger_budget_extends_a_study_and_a_smaller_one_deletes_nothing(tmp_path):
    ledger = drive(tmp_path, trials=2)
    finish(ledger)
    finish(ledger)
    assert finish(drive(tmp_path, trials=3)).number == 2
    smaller = drive(tmp_path, trials=1)
    assert smaller.next_attempt() is None
    assert len(smaller.trials()) == 3


def test_a_dead_trial_is_asked_again_until_its_failures_are_used_up(tmp_path):
    ledger = drive(tmp_path)
    take(ledger)
    assert ledger.process_died(0, 1, "killed by signal 9", max_failures=1) is True
    assert ledger.process_died(0, 1, "killed by signal 9", max_failures=1) is True
    assert (ledger.trial(0).failures, take(ledger)) == (1, TrialAttempt(0, 2, START))
    assert ledger.process_died(0, 2, "killed by signal 9", max_failures=1) is False
    record = ledger.trial(0)
    assert (record.state, record.failures, record.reason) == (State.FAIL, 2, "killed by signal 9")
    assert take(ledger).number == 1


def test_pruned_and_failed_trials_have_a_reason_and_no_value(tmp_path):
    ledger = drive(tmp_path)
    take(ledger)
    take(ledger)
    ledger.report(0, 1, history(0.2, 0.1))
    ledger.prune(0, 1)
    ledger.fail(1, 1, "loss.ssim is nan at epoch 1")
    told = [(t.state, t.value, t.reason) for t in ledger.trials()]
    assert told == [
        (State.PRUNED, None, "pruned at epoch 2"),
        (State.FAIL, None, "loss.ssim is nan at epoch 1"),
    ]
    assert ledger.best() is None


@pytest.mark.parametrize(("select", "value"), [("last", 0.3), ("best", 0.5)])
def test_the_value_is_that_of_the_selected_epoch(tmp_path, select, value):
    ledger = drive(tmp_path, select=select)
    take(ledger)
    ledger.report(0, 1, history(0.2, 0.5, 0.3))
    ledger.complete(0, 1)
    assert ledger.trial(0).value == value


def test_a_trial_without_epochs_cannot_be_complete(tmp_path):
    ledger = drive(tmp_path)
    take(ledger)
    with pytest.raises(ValueError, match="no epoch is recorded"):
        ledger.complete(0, 1)


def test_the_best_trial_is_the_earliest_with_the_highest_value(tmp_path):
    ledger = drive(tmp_path)
    for miou in (0.0, 0.4, 0.4, 0.1):
        finish(ledger, miou)
    best = ledger.best()
    assert best is not None
    assert best.number == 1


def test_an_epoch_comes_back_as_it_was_with_its_missing_classes(tmp_path):
    ledger = drive(tmp_path)
    take(ledger)
    ledger.report(0, 1, history(0.2))
    (epoch,) = Ledger(url_in(tmp_path), "s").trial(0).epochs
    assert math.isnan(epoch.iou["pole"])
    assert epoch.to_json() == result(1, 0.2).to_json()


def test_a_trial_whose_value_is_not_a_number_fails_with_the_reason(tmp_path):
    ledger = drive(tmp_path)
    take(ledger)
    ledger.report(0, 1, history(0.2, math.nan))
    ledger.complete(0, 1)
    record = ledger.trial(0)
    assert (record.state, record.reason) == (State.FAIL, "val/miou of epoch 2 is nan")
    assert math.isnan(record.epochs[1].miou)


def test_trials_start_and_end_in_order(tmp_path):
    ledger = drive(tmp_path)
    finish(ledger)
    take(ledger)
    first, second = ledger.trials()
    assert first.ended is not None
    assert first.started <= first.ended <= second.started
    assert first.asked_seq < first.epoch_events[0].seq < first.ended_seq < second.asked_seq
    assert second.ended is second.ended_seq is None


def test_a_trial_never_asked_is_unknown(tmp_path):
    ledger = drive(tmp_path)
    with pytest.raises(KeyError):
        ledger.trial(0)
    assert ledger.trials() == []


@pytest.mark.slow
def test_another_thread_may_read_while_trials_are_written(tmp_path):
    ledger, done, seen = drive(tmp_path), threading.Event(), [0]

    def read() -> None:
        while not done.is_set():
            seen.append(sum(len(t.epochs) for t in ledger.trials()))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(8):
        finish(ledger)
    done.set()
    reader.join()
    assert seen == sorted(seen)
    assert len(ledger.trials()) == 8


def fail_times(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Make adding a trial fail so many times as SQLite does; returns the calls that were made."""
    write, calls = Transaction.add_trial, []

    def flaky(*args: object) -> None:
        calls.append(1)
        if len(calls) <= times:
            raise OperationalError("INSERT", {}, Exception("database is locked"))
        write(*args)

    monkeypatch.setattr(Transaction, "add_trial", flaky)
    monkeypatch.setattr("fgseg.storage.retry.sleep", lambda pause_s: None)
    return calls


def test_a_busy_database_is_asked_again(tmp_path, monkeypatch):
    ledger = drive(tmp_path)
    calls = fail_times(monkeypatch, times=2)
    assert take(ledger) == TrialAttempt(0, 1, START)
    assert len(calls) == 3  # two that failed


def test_a_database_that_stays_broken_is_told_in_one_line_and_loses_nothing(tmp_path, monkeypatch):
    ledger = drive(tmp_path, trials=1)
    with monkeypatch.context() as broken:
        fail_times(broken, times=4)
        with pytest.raises(
            LedgerError,
            match=r"^the ledger's database \(study.db of the study, or --ledger-url\) fails: database is locked; .*$",
        ):
            ledger.next_attempt()
    assert take(drive(tmp_path, trials=1)) == TrialAttempt(0, 1, START)


def test_study_of_another_version_is_refused_in_one_line(tmp_path):
    ledger = drive(tmp_path)
    with ledger._engine.begin() as connection:
        connection.execute(update(STUDIES).values(format=1))
    message = r"^study s was written by another version of fgsearch; begin a new study$"
    with pytest.raises(LedgerError, match=message):
        Ledger(url_in(tmp_path), "s")


def test_database_with_the_tables_of_the_first_version_is_refused_in_one_line(tmp_path):
    with open_engine(url_in(tmp_path)).begin() as connection:
        TABLES.drop_all(connection)
        connection.execute(text("CREATE TABLE fgsearch_lock (study VARCHAR(512))"))
    with pytest.raises(LedgerError, match="another version of fgsearch"):
        study_id(url_in(tmp_path), "s")
