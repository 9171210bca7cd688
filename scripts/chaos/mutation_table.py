"""The mutations of scripts.chaos.mutations: single wrong edits.

They change the ledger, its lock, the handling of events, checkpoints and the store of files.
"""

from typing import NamedTuple


class Mutation(NamedTuple):
    """One wrong edit of one file."""

    name: str
    file: str
    """Path below the root of the repository."""
    old: str
    """Text that occurs exactly once in the file."""
    new: str
    harm: str
    """What the edit breaks."""


TRANSACTION = "search/ledger/transaction.py"
READER = "search/ledger/study_reader.py"
METADATA = "search/ledger/metadata_writer.py"
LEDGER = "search/ledger/ledger.py"
RECORDS = "search/ledger/records.py"
SOURCE = "search/ledger/trial_source.py"
LOCK = "search/ledger/lock.py"
EVENTS = "search/execution/trial_events.py"
RETENTION = "search/execution/checkpoint_retention.py"
MANIFEST = "fgseg/checkpoints/manifest.py"
CHECKPOINT = "fgseg/checkpoints/checkpoint.py"
STORE = "fgseg/storage/store.py"
TUNE = "search/execution/ray_tune.py"

MUTATIONS = (
    Mutation(
        "write-without-lock",
        TRANSACTION,
        "(COUNT_OWN_WRITE, lock.key)",
        "(COUNT_WRITE, {})",
        "a driver that has lost the lock still writes",
    ),
    Mutation(
        "write-of-old-attempt",
        TRANSACTION,
        'TRIALS.c.attempt == bindparam("of_attempt")',
        'TRIALS.c.attempt >= bindparam("of_attempt")',
        "a write based on a superseded attempt is stored",
    ),
    Mutation(
        "write-to-ended-trial",
        TRANSACTION,
        "    TRIALS.c.state == State.RUNNING.value,\n",
        "",
        "a trial that another driver has ended is changed",
    ),
    Mutation(
        "write-to-other-study",
        TRANSACTION,
        'TRIALS.c.study == bindparam("of_study")',
        'bindparam("of_study") > 0',
        "the trial of the same number in another study is changed too",
    ),
    Mutation(
        "decision-in-other-study",
        TRANSACTION,
        'EPOCHS.c.study == bindparam("of_study")',
        'bindparam("of_study") > 0',
        "the pruner's decision is stored in another study too",
    ),
    Mutation(
        "superseded-write-ignored",
        TRANSACTION,
        ".rowcount != 1:",
        ".rowcount > 1:",
        "a write that changed no row counts as stored",
    ),
    Mutation(
        "write-without-seq",
        TRANSACTION,
        'key | columns | {"seq": self.seq}',
        'key | columns | {"seq": record.seq}',
        "other processes do not see that the trial has changed",
    ),
    Mutation(
        "seq-not-counted",
        TRANSACTION,
        "seq=STUDIES.c.seq + 1",
        "seq=STUDIES.c.seq",
        "the order of the writes is not recorded",
    ),
    Mutation(
        "memory-without-seq",
        TRANSACTION,
        "replace(record, **fields, seq=self.seq)",
        "replace(record, **fields)",
        "the sampler does not see that the trial has changed",
    ),
    Mutation(
        "lost-lock-forgotten",
        TRANSACTION,
        "lock.mark_lost()",
        "pass",
        "a driver that has lost the lock continues until its next heartbeat",
    ),
    Mutation(
        "deaths-not-counted-per-attempt",
        TRANSACTION,
        'FAILURES.c.attempt == bindparam("of_attempt")',
        'bindparam("of_attempt") > 0',
        "only the first death of a trial's processes is counted",
    ),
    Mutation(
        "memory-kept-after-failed-write",
        METADATA,
        "self._is_fresh = False",
        "pass",
        "a write whose answer was lost is missing in the driver's memory",
    ),
    Mutation(
        "memory-with-a-gap",
        METADATA,
        " and write.seq == self._seq + 1",
        "",
        "a write of another process is missing in the driver's memory",
    ),
    Mutation(
        "description-not-read-again",
        METADATA,
        "was_fresh and write.changed and",
        "was_fresh and",
        "the driver's memory has an outdated description of the study",
    ),
    Mutation(
        "identity-replaced",
        METADATA,
        'if not before["identity"]:',
        "if True:",
        "a run with other settings replaces the identity of the study",
    ),
    Mutation(
        "changes-without-ended-trials",
        METADATA,
        "for record in self.trials() if not record.is_open]",
        "for record in self.trials() if record.is_open]",
        "ended trials are compared with settings that they were not trained with",
    ),
    Mutation(
        "study-of-another-driver-deleted",
        METADATA,
        "with transaction(self._engine, self._study, self._lock) as write:\n            for table",
        "with transaction(self._engine, self._study, None) as write:\n            for table",
        "a study that another driver has taken is deleted",
    ),
    Mutation(
        "read-from-memory-without-lock",
        READER,
        "if self._is_fresh and self.is_locked:",
        "if self._is_fresh:",
        "a driver that has lost the lock does not see the writes of the other one",
    ),
    Mutation(
        "memory-from-before-the-lock",
        READER,
        'self._seq, self._is_fresh = row["seq"], locked',
        'self._seq, self._is_fresh = row["seq"], True',
        "a write between the last read and the lock is missing in the driver's memory",
    ),
    Mutation(
        "latest-write-not-read",
        READER,
        'TRIALS.c.seq > bindparam("since")',
        'TRIALS.c.seq > bindparam("since") + 1',
        "a reader misses the first write after its last read",
    ),
    Mutation(
        "attempt-not-incremented",
        LEDGER,
        "attempt=waiting.attempt + 1",
        "attempt=waiting.attempt",
        "a resumed trial is not fenced from its earlier worker",
    ),
    Mutation(
        "length-not-updated",
        LEDGER,
        "attempt=waiting.attempt + 1, length=started.epochs",
        "attempt=waiting.attempt + 1",
        "a trial resumed with more epochs is recorded with its old length",
    ),
    Mutation(
        "attempted-trials-forgotten",
        LEDGER,
        "self._attempted.add(record.number)",
        "pass",
        "a running trial is started again and again",
    ),
    Mutation(
        "stale-report-accepted",
        LEDGER,
        "record = self._current(number, attempt)\n        if [epoch.epoch",
        "record = self.trial(number)\n        if [epoch.epoch",
        "epochs of a superseded attempt are recorded",
    ),
    Mutation(
        "stale-end-accepted",
        LEDGER,
        "record = self._current(number, attempt)\n        if not record.epochs:",
        "record = self.trial(number)\n        if not record.epochs:",
        "a superseded attempt completes the trial",
    ),
    Mutation(
        "history-with-a-gap-accepted",
        LEDGER,
        "!= list(range(1, len(epochs) + 1)):",
        "!= sorted(epoch.epoch for epoch in epochs):",
        "epochs are recorded without those before them",
    ),
    Mutation(
        "one-epoch-per-report",
        LEDGER,
        "new = epochs[len(record.epochs) :]",
        "new = epochs[len(record.epochs) : len(record.epochs) + 1]",
        "a report with several new epochs loses all but one",
    ),
    Mutation(
        "decision-made-again",
        LEDGER,
        "if event.stop is not None:",
        "if False:",
        "a recorded decision of the pruner changes with its settings",
    ),
    Mutation(
        "pruned-at-the-last-epoch",
        LEDGER,
        "if not 0 < epoch < self._started.epochs",
        "if not 0 < epoch <= self._started.epochs",
        "a completely trained trial is pruned",
    ),
    Mutation(
        "diverged-trial-pruned",
        LEDGER,
        " or not math.isfinite(self._value(record.epochs[-1])):",
        ":",
        "a trial whose mIoU is not finite is pruned instead of failing",
    ),
    Mutation(
        "decision-without-seq",
        TRANSACTION,
        '{"stop": stop, "stop_seq": self.seq}',
        '{"stop": stop}',
        "after a restart the pruner does not repeat its decisions",
    ),
    Mutation(
        "value-of-the-last-epoch",
        LEDGER,
        "select_epoch(record.epochs, self._started.select)",
        'select_epoch(record.epochs, "last")',
        "the selected epoch does not define the value of a trial",
    ),
    Mutation(
        "trial-ended-twice",
        LEDGER,
        'unless it has ended."""\n        if record.is_open:\n            with self._write() as write:\n'
        "                write.change_trial(record, **ending",
        'unless it has ended."""\n        if True:\n            with self._write() as write:\n'
        "                write.change_trial(record, **ending",
        "the repeated end of a trial is an error",
    ),
    Mutation(
        "end-without-seq",
        LEDGER,
        '"ended_seq": write.seq',
        '"ended_seq": None',
        "the sampler does not learn the value of a trial",
    ),
    Mutation(
        "stale-death-counted",
        LEDGER,
        "if not record.is_open or record.attempt != attempt:",
        "if not record.is_open:",
        "the death of a superseded attempt's process counts as a failure of the current one",
    ),
    Mutation(
        "one-failure-too-few",
        LEDGER,
        "record.failures + 1 > max_failures",
        "record.failures + 1 >= max_failures",
        "a trial fails one death too early",
    ),
    Mutation(
        "stale-reschedule",
        LEDGER,
        "if self.trial(number).attempt == attempt:",
        "if True:",
        "the end of a superseded attempt starts a running trial a second time",
    ),
    Mutation(
        "changed-batch-ranked",
        RECORDS,
        "(changed_batch or not r.overrides)",
        "True",
        "a trial with a changed batch becomes the best",
    ),
    Mutation(
        "failed-repeat-again",
        SOURCE,
        "if repeat not in existing)",
        "if True)",
        "a repeat that the study has is started again",
    ),
    Mutation(
        "holder-not-checked",
        LOCK,
        "if holder is not None and holder.is_alive() and holder.token != self._token:",
        "if False:",
        "the lock of a living driver is taken",
    ),
    Mutation(
        "heartbeat-ignored",
        LOCK,
        " & (STUDIES.c.lock_heartbeat <= holder.heartbeat)",
        "",
        "a driver whose heartbeat comes during the take-over loses its lock",
    ),
    Mutation(
        "two-drivers-at-once",
        LOCK,
        "return STUDIES.c.lock_token.is_(None)",
        "return STUDIES.c.id > 0",
        "of two drivers that find the lock free, both take it",
    ),
    Mutation(
        "never-taken-over",
        LOCK,
        "return self.age_s <= TAKEOVER_S",
        "return self.age_s >= 0",
        "the lock of a dead driver on another host is never taken over",
    ),
    Mutation(
        "later-process-is-the-holder",
        LOCK,
        "abs(process.create_time() - self.started) < START_TOLERANCE_S",
        "True",
        "a later process with the same number counts as the holder",
    ),
    Mutation(
        "heartbeats-not-remembered",
        LOCK,
        "                    self._renewed = asked",
        "                    pass",
        "a driver gives up its lock although it writes heartbeats",
    ),
    Mutation(
        "lock-of-another-renewed",
        LOCK,
        "where(STUDY, OURS).values(lock_heartbeat=",
        'where(STUDY, bindparam("of_token") != "").values(lock_heartbeat=',
        "a driver that has lost the lock renews it for the other driver, and believes to hold it",
    ),
    Mutation(
        "lock-of-another-released",
        LOCK,
        "where(STUDY, OURS).values(dict.fromkeys",
        'where(STUDY, bindparam("of_token") != "").values(dict.fromkeys',
        "a driver releases the lock that another one has taken",
    ),
    Mutation(
        "lock-held-without-heartbeats",
        LOCK,
        "return not ended and uptime() - self._renewed < TAKEOVER_S",
        "return not ended",
        "a driver whose heartbeats fail writes while another one takes over",
    ),
    Mutation(
        "stop-decision-ignored",
        EVENTS,
        "return self.ledger.should_prune(trial.number) or self.time.is_used_up()",
        "return self.ledger.should_prune(trial.number) is None or self.time.is_used_up()",
        "the pruner's decision stops no trial",
    ),
    Mutation(
        "superseded-worker-continues",
        EVENTS,
        "except SupersededError:\n            return True",
        "except SupersededError:\n            return False",
        "the worker of a superseded attempt trains on",
    ),
    Mutation(
        "notified-before-recorded",
        EVENTS,
        "self._record(trial, report)\n                self._notify(trial.number)",
        "self._notify(trial.number)\n                self._record(trial, report)",
        "listeners see a trial without its latest epoch",
    ),
    Mutation(
        "overrides-erased",
        EVENTS,
        "if report.overrides and report.overrides != trial.overrides:",
        "if report.overrides != trial.overrides:",
        "a later attempt erases the record of the changed batch",
    ),
    Mutation(
        "full-disk-ignored",
        EVENTS,
        "if report.fatal_error:",
        "if False:",
        "a full disk does not stop the run",
    ),
    Mutation(
        "lost-node-keeps-its-place",
        EVENTS,
        "        del self.live[trial_id]\n",
        "",
        "the place of a trial whose node died stays occupied",
    ),
    Mutation(
        "incomplete-trial-completed",
        EVENTS,
        "elif len(report.epochs) >= self.epochs:",
        "elif report.epochs:",
        "a pruned trial is recorded as COMPLETE",
    ),
    Mutation(
        "failures-never-reset",
        EVENTS,
        "            self.failed_in_a_row = 0\n        if",
        "            pass\n        if",
        "failures with successes between them stop the run",
    ),
    Mutation(
        "selected-checkpoint-deleted",
        RETENTION,
        "keep_only(store, [kept] if kept else [], trial.attempt)",
        "keep_only(store, [], trial.attempt)",
        "the weights of the best trial are deleted",
    ),
    Mutation(
        "running-trial-pruned",
        RETENTION,
        " if not trial.is_open]",
        "]",
        "the checkpoints of a running trial are deleted",
    ),
    Mutation(
        "ray-never-stops-a-trial",
        TUNE,
        "return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE",
        "return TrialScheduler.CONTINUE",
        "Ray Tune is not told to stop a trial",
    ),
    Mutation(
        "lost-lock-does-not-stop",
        TUNE,
        "if self.reason is None and not self.ledger.is_locked:",
        "if False:",
        "a driver that has lost the lock keeps starting trials",
    ),
    Mutation(
        "events-after-a-fault",
        TUNE,
        "if self.reason is not None:",
        "if False:",
        "events are recorded after the fault that stops the run",
    ),
    Mutation(
        "ended-while-trials-run",
        TUNE,
        "return None if events.live else Searcher.FINISHED",
        "return Searcher.FINISHED",
        "a trial that dies last is not started again",
    ),
    Mutation(
        "checkpoint-of-superseded-attempt",
        CHECKPOINT,
        "        manifest = Manifest(self.attempt, history[-1].epoch, blobs, history)\n        self.check_current()\n",
        "        manifest = Manifest(self.attempt, history[-1].epoch, blobs, history)\n",
        "an attempt that is superseded while it writes a checkpoint completes it",
    ),
    Mutation(
        "blobs-of-superseded-attempt",
        CHECKPOINT,
        "        self.check_current()\n        for name, data",
        "        for name, data",
        "a superseded attempt writes files",
    ),
    Mutation(
        "start-of-superseded-attempt",
        CHECKPOINT,
        "        self.check_current()\n        claim_attempt",
        "        claim_attempt",
        "a superseded attempt claims the folder of the trial",
    ),
    Mutation(
        "attempt-not-claimed",
        CHECKPOINT,
        "        claim_attempt(store, attempt)\n",
        "",
        "earlier attempts go on writing into the folder of the trial",
    ),
    Mutation(
        "oldest-claim-counts",
        MANIFEST,
        "return max((int(m[1])",
        "return min((int(m[1])",
        "the first attempt that claimed a folder counts as the current one",
    ),
    Mutation(
        "manifest-before-blobs",
        CHECKPOINT,
        "        for name, data in contents.items():\n            self.store.put(name, data)\n"
        "        blobs = [make_blob(name, data) for name, data in contents.items()]\n"
        "        manifest = Manifest(self.attempt, history[-1].epoch, blobs, history)\n        self.check_current()\n"
        "        self.store.put(manifest.name, manifest.to_bytes())\n",
        "        blobs = [make_blob(name, data) for name, data in contents.items()]\n"
        "        manifest = Manifest(self.attempt, history[-1].epoch, blobs, history)\n        self.check_current()\n"
        "        self.store.put(manifest.name, manifest.to_bytes())\n"
        "        for name, data in contents.items():\n            self.store.put(name, data)\n",
        "a crash leaves a manifest whose files do not exist",
    ),
    Mutation(
        "manifests-deleted-last",
        MANIFEST,
        "key=lambda n: MANIFEST.fullmatch(n) is None",
        "key=lambda n: MANIFEST.fullmatch(n) is not None",
        "a crash leaves a manifest whose files are deleted",
    ),
    Mutation(
        "file-not-synced",
        STORE,
        "                os.fsync(file.fileno())\n",
        "",
        "a power cut leaves a file that is empty or cut",
    ),
    Mutation(
        "rename-not-synced",
        STORE,
        "            sync_folder(folder)\n",
        "            pass\n",
        "a power cut takes back a rename on which the ledger depends",
    ),
    Mutation(
        "file-written-in-place",
        STORE,
        "os.replace(temporary, path)",
        "temporary.unlink(path.write_bytes(data) < 0)",
        "a crash leaves half of a file under its name",
    ),
)
