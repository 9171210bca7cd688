"""What each event of a trial means for the ledger and the listeners, without Ray."""

import math
from pathlib import Path

import pytest
from builders import make_history
from small_ledger import start_search
from sqlalchemy import update

from fgseg.config.settings import DataConfig
from search.execution.messages import TrialReport
from search.execution.trial_events import MAX_NODE_LOSSES, StopRunError, TrialEventHandler
from search.ledger.database import LedgerError
from search.ledger.ledger import Ledger
from search.ledger.records import State, TrialAttempt, TrialRecord
from search.ledger.study_metadata import StudyMetadata
from search.ledger.tables import STUDIES
from search.sampling.distributions import distributions
from search.study.config import SearchConfig
from search.study.space import load_space

EPOCHS = 3


def open_ledger(folder: Path, pruner: str = "none", trials: int = 6) -> Ledger:
    ledger = Ledger.create(f"sqlite:///{folder}/study.db", "s")
    space = load_space("bas", DataConfig())
    settings = {"trials": trials, "sampler": "random", "pruner": pruner, "epochs": EPOCHS, "seed": 0}
    start_search(ledger, distributions(space.search), space.start, **settings)
    return ledger


@pytest.fixture
def events(tmp_path: Path) -> TrialEventHandler:
    return make_handler(open_ledger(tmp_path))


class Listener:
    """Collects what it is notified of."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.epochs: list[int] = []
        self.notes: list[tuple[int | None, str]] = []

    def on_attempt(self, record: TrialRecord) -> None:
        self.calls.append(("attempt", record.number))
        self.epochs.append(len(record.epochs))

    def on_epoch(self, record: TrialRecord) -> None:
        self.calls.append(("epoch", record.number))
        self.epochs.append(len(record.epochs))

    def on_trial_end(self, record: TrialRecord) -> None:
        self.calls.append(("end", record.number))
        self.epochs.append(len(record.epochs))

    def on_note(self, number: int | None, text: str) -> None:
        self.notes.append((number, text))


def make_handler(ledger: Ledger, *listeners: Listener) -> TrialEventHandler:
    search = SearchConfig(max_failures=1, max_failed_trials=2)
    return TrialEventHandler(ledger, EPOCHS, search, listeners)


def take(events: TrialEventHandler, name: str) -> TrialAttempt:
    ask = events.next_attempt(name)
    assert ask is not None
    return ask


def report(ask: TrialAttempt, epochs: int, **more: object) -> TrialReport:
    return TrialReport(ask.number, ask.attempt, make_history(*[0.5] * epochs), **more)


def test_trial_with_all_its_epochs_is_complete(events: TrialEventHandler):
    ask = take(events, "a")
    assert not events.on_report("a", report(ask, 3))
    events.on_trial_end("a", report(ask, 3), died=False)
    assert events.ledger.trial(0).state is State.COMPLETE


def test_every_event_takes_precedence_until_its_listeners_are_notified(tmp_path: Path):
    order: list[str] = []

    class Precedence:
        def __enter__(self) -> None:
            order.append("begin")

        def __exit__(self, *error: object) -> None:
            order.append("end")

    class Notified(Listener):
        def on_attempt(self, record: TrialRecord) -> None:
            order.append("attempt")

        def on_epoch(self, record: TrialRecord) -> None:
            order.append("epoch")

        def on_trial_end(self, record: TrialRecord) -> None:
            order.append("trial end")

    events = TrialEventHandler(open_ledger(tmp_path), EPOCHS, SearchConfig(), [Notified()], Precedence())
    ask = take(events, "a")
    events.on_report("a", report(ask, 3))
    events.on_trial_end("a", report(ask, 3), died=False)
    assert order == ["begin", "attempt", "end", "begin", "epoch", "end", "begin", "trial end", "end"]
    order.clear()
    take(events, "b")
    events.on_node_lost("b")
    assert order == ["begin", "attempt", "end", "begin", "end"]


def test_last_report_entered_again_changes_nothing(events: TrialEventHandler):
    ask = take(events, "a")
    for _ in range(3):
        events.on_report("a", report(ask, 2))
    assert [e.epoch for e in events.ledger.trial(0).epochs] == [1, 2]


def test_error_is_a_failure_with_its_reason(events: TrialEventHandler):
    ask = take(events, "a")
    events.on_trial_end("a", report(ask, 1, error="DivergedError: epoch 2: ssim is nan"), died=False)
    record = events.ledger.trial(0)
    assert (record.state, record.reason) == (State.FAIL, "DivergedError: epoch 2: ssim is nan")
    assert record.value is None


def test_dead_process_is_asked_again_until_it_has_died_too_often(events: TrialEventHandler):
    first = take(events, "a")
    events.on_trial_end("a", None, died=True)
    second = take(events, "b")
    assert (first.number, first.attempt, second.number, second.attempt) == (0, 1, 0, 2)
    assert second.params == first.params
    events.on_trial_end("b", None, died=True)
    assert events.ledger.trial(0).state is State.FAIL
    assert events.ledger.trial(0).reason == "its process died (attempt 2)"


def test_trials_whose_process_meets_a_fault_of_its_gpu_resume_and_do_not_stop_the_study(events: TrialEventHandler):
    fault = "AcceleratorError: CUDA error: an illegal memory access was encountered"
    for number in range(5):  # more failures in a row than `max_failed_trials`
        ask = take(events, "a")
        assert not events.on_report("a", report(ask, 1, process_error=fault))
        events.on_trial_end("a", None, died=True)
        again = take(events, "b")
        assert (again.number, again.attempt) == (number, 2)
        events.on_trial_end("b", report(again, 3), died=False)
        assert events.ledger.trial(number).state is State.COMPLETE


def test_fault_of_a_gpu_that_returns_is_the_reason_of_the_failure(events: TrialEventHandler):
    for name in ("a", "b"):
        events.on_report(name, report(take(events, name), 0, process_error="AcceleratorError: CUDA error: unspecified"))
        events.on_trial_end(name, None, died=True)
    record = events.ledger.trial(0)
    assert record.state is State.FAIL
    assert record.reason == "its process died (attempt 2): AcceleratorError: CUDA error: unspecified"


def test_trial_stopped_before_it_said_anything_stays_open(events: TrialEventHandler):
    take(events, "a")
    events.on_trial_end("a", None, died=False)
    assert events.ledger.trial(0).state is State.RUNNING


def test_report_of_a_superseded_attempt_stops_it_and_changes_nothing(tmp_path: Path):
    old = make_handler(open_ledger(tmp_path))
    ask = take(old, "a")
    take(make_handler(open_ledger(tmp_path)), "b")
    assert old.on_report("a", report(ask, 1))
    old.on_trial_end("a", report(ask, 1), died=False)
    record = old.ledger.trial(0)
    assert (record.attempt, record.epochs, record.state) == (2, [], State.RUNNING)


def test_full_disk_stops_the_run_and_leaves_the_trial_open(events: TrialEventHandler):
    ask = take(events, "a")
    with pytest.raises(StopRunError) as stopped:
        events.on_report("a", report(ask, 1, fatal_error="No space left on device"))
    assert str(stopped.value) == "trial 0: No space left on device; fix that, then run the same command again"
    assert events.ledger.trial(0).state is State.RUNNING


def test_too_many_failures_in_a_row_stop_the_run_after_the_listeners_were_notified(tmp_path: Path):
    listener = Listener()
    events = make_handler(open_ledger(tmp_path), listener)
    first, second = take(events, "a"), take(events, "b")
    events.on_trial_end("a", report(first, 0, error="FileNotFoundError: frames are gone"), died=False)
    with pytest.raises(StopRunError, match=r"2 trials failed in a row.*frames are gone"):
        events.on_trial_end("b", report(second, 0, error="FileNotFoundError: frames are gone"), died=False)
    assert listener.calls[-2:] == [("end", 0), ("end", 1)]


def test_success_in_between_resets_the_count_of_failures(events: TrialEventHandler):
    for name, epochs, error in (("a", 0, "x"), ("b", 3, None), ("c", 0, "x")):
        ask = take(events, name)
        events.on_trial_end(name, report(ask, epochs, error=error), died=False)  # the third one raises nothing
    assert events.failed_in_a_row == 1


def test_fault_of_the_database_stops_the_run(events: TrialEventHandler, monkeypatch: pytest.MonkeyPatch):
    ask = take(events, "a")

    def broken(*args: object) -> None:
        raise LedgerError("the ledger's database fails: disk full")

    monkeypatch.setattr(events.ledger, "report", broken)
    with pytest.raises(StopRunError, match=r"^the ledger's database fails: disk full$"):
        events.on_report("a", report(ask, 1))


def test_note_of_a_worker_is_forwarded_once(tmp_path: Path):
    listener = Listener()
    events = make_handler(open_ledger(tmp_path), listener)
    ask = take(events, "a")
    for epochs in (1, 2):
        events.on_report("a", report(ask, epochs, notes=["checkpoint damaged"]))
    assert listener.notes == [(0, "checkpoint damaged")]


def test_listeners_are_notified_of_start_epochs_and_end_in_order(tmp_path: Path):
    listener = Listener()
    events = make_handler(open_ledger(tmp_path), listener)
    ask = take(events, "a")
    events.on_report("a", report(ask, 1))
    events.on_trial_end("a", report(ask, 3), died=False)
    assert listener.calls == [("attempt", 0), ("epoch", 0), ("end", 0)]
    assert listener.epochs == [0, 1, 3]


def test_listener_whose_disk_is_full_stops_the_run(tmp_path: Path):
    class Full(Listener):
        def on_epoch(self, record: TrialRecord) -> None:
            raise OSError(28, "No space left on device")

    events = make_handler(open_ledger(tmp_path), Full())
    ask = take(events, "a")
    with pytest.raises(StopRunError, match="No space left on device; fix that, then run the same command again"):
        events.on_report("a", report(ask, 1))


def test_changed_batch_is_kept_for_later_starts_and_out_of_the_best(tmp_path: Path):
    events = make_handler(open_ledger(tmp_path))
    ask = take(events, "a")
    events.on_report("a", report(ask, 1, overrides={"train.batch_size": 1}))
    later = make_handler(open_ledger(tmp_path))
    again = take(later, "b")
    assert again.overrides == {"train.batch_size": 1}
    later.on_trial_end("b", report(again, 3), died=False)  # a start that changes nothing says so
    assert later.ledger.trial(0).overrides == {"train.batch_size": 1}
    assert later.ledger.trial(0).state is State.COMPLETE
    assert later.ledger.best() is None
    later.ledger.record_run(StudyMetadata(allow_changed_batch=True, budget=6))
    assert later.ledger.best() is not None


def test_pruned_trial_is_never_complete(tmp_path: Path):
    events = make_handler(open_ledger(tmp_path, pruner="median", trials=8))
    for name in "abcde":
        ask = take(events, name)
        events.on_trial_end(name, report(ask, 3), died=False)
    ask = take(events, "weak")
    weak = TrialReport(ask.number, ask.attempt, make_history(0.01, 0.01))
    assert events.on_report("weak", weak)
    events.on_trial_end("weak", weak, died=False)
    record = events.ledger.trial(ask.number)
    assert (record.state, record.value, record.reason) == (State.PRUNED, None, "pruned at epoch 2")


def test_report_travels_as_text_and_comes_back_the_same():
    sent = TrialReport(3, 2, make_history(math.nan), {"train.batch_size": 1}, ["note"], None, None)
    back = TrialReport.from_json(sent.to_json())
    assert (back.number, back.attempt, back.overrides, back.notes) == (3, 2, {"train.batch_size": 1}, ["note"])
    assert math.isnan(back.epochs[0].iou["fence"])


def test_trial_under_which_node_after_node_dies_fails_in_the_end(events):
    for move in range(1, MAX_NODE_LOSSES + 3):
        assert take(events, "t").number == 0
        events.on_node_lost("t")
        assert events.live == {}
        assert events.ledger.trial(0).failures == max(0, move - MAX_NODE_LOSSES)
    assert events.ledger.trial(0).state is State.FAIL
    assert take(events, "t").number == 1


def test_trial_whose_folder_belongs_to_a_later_start_is_asked_again(events: TrialEventHandler):
    """A worker that finds a later claim in its folder gives way without a word: the ledger may be an older copy."""
    ask = take(events, "a")
    events.on_report("a", report(ask, 1))
    events.on_trial_end("a", report(ask, 1), died=False)
    again = take(events, "b")
    assert (again.number, again.attempt) == (ask.number, ask.attempt + 1)
    assert events.ledger.trial(0).failures == 0
    for _ in range(MAX_NODE_LOSSES + 2):
        events.on_trial_end("b", report(again, 1), died=False)
        again = take(events, "b")
    assert events.ledger.trial(0).state is State.FAIL


def test_mistake_of_our_own_at_the_end_of_a_trial_ends_the_run_instead_of_vanishing(
    events: TrialEventHandler, monkeypatch
):
    ask = take(events, "a")
    monkeypatch.setattr(events.ledger, "complete", lambda *args: {}["missing"])
    with pytest.raises(StopRunError, match=r"^trial 0: KeyError: 'missing'; run the same command again$"):
        events.on_trial_end("a", report(ask, 3), died=False)


def test_study_that_another_driver_has_taken_gets_no_more_trials_from_this_one(events: TrialEventHandler):
    with events.ledger.lock():
        with events.ledger._engine.begin() as connection:
            connection.execute(update(STUDIES).values(lock_token="theirs"))
        with pytest.raises(StopRunError, match=r"^another driver has taken the study over$"):
            events.next_attempt("a")
