"""The message that a worker gets for each attempt of a trial."""

from dataclasses import dataclass

from search.execution.messages import TrialJob
from search.ledger.records import TrialAttempt
from search.study.plan import Plan, absolute
from search.study.resources import Resources


@dataclass(frozen=True)
class TrialJobs:
    """Makes the jobs of one run.

    Args:
        plan: the settings of its trials.
        resources: of each trial.
        required_environment: library versions, and as `data` the fingerprint, which a worker's node must share with
            the driver; of the driver's own machine only `data`.
    """

    plan: Plan
    resources: Resources
    required_environment: dict[str, str]

    def job(self, trial: TrialAttempt) -> TrialJob:
        """Return the job of one attempt of a trial; repeats of a comparison are also evaluated on the test split."""
        return TrialJob(
            number=trial.number,
            attempt=trial.attempt,
            settings=absolute(self.plan.trial_settings(trial)),
            folder=self.plan.location.trial_folder(trial.number),
            threads=self.resources.threads,
            gpus=self.resources.gpus,
            on_oom=self.plan.search.on_oom,
            test="test" in self.plan.splits,
            processes=self.resources.processes,
            cpus=self.resources.cpus,
            study_folder=self.plan.location.folder,
            required_environment=self.required_environment,
        )
