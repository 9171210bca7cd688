"""What a worker is told about one start of a trial."""

from search.job import Job
from search.ledger.records import Ask
from search.study.plan import Plan, absolute
from search.study.resources import Resources


def make_job(plan: Plan, resources: Resources, alike: dict[str, str], ask: Ask) -> Job:
    """What a worker needs to know about one start of a trial; a repeat is to be judged on the test split as well.

    Args:
        plan: says what is to be trained, and where it is kept.
        resources: of each trial.
        alike: what the worker's node must have like this one; empty where it is this one.
        ask: the start, as the ledger gave it.
    """
    return Job(
        number=ask.number,
        attempt=ask.attempt,
        settings=absolute(plan.trial_settings(ask)),
        folder=plan.trial_folder(ask.number),
        threads=resources.threads,
        gpus=resources.gpus,
        on_oom=plan.search.on_oom,
        test=ask.repeat is not None,
        processes=resources.processes,
        cpus=resources.cpus,
        alike=alike,
    )
