"""Settings of a search: number of trials, resources, storage. The section `search` of a configuration file."""

from typing import Literal

from pydantic import Field

from fgseg.config.settings import Section
from search.study.objective import split_names


class SearchConfig(Section):
    """Settings of a search. Each is also a command-line flag, whose help text is the docstring of the setting."""

    trials: int = Field(20, ge=1, le=1_000_000)
    """Trials of the whole study, including ended ones."""
    max_hours: float | None = Field(None, gt=0)
    """Hours of the whole study, over all its runs; by default no limit. A trial that would not finish is not started;
    a running one is stopped after the epoch in which the time ends, and can be continued."""
    max_gpu_hours: float | None = Field(None, gt=0)
    """The same for GPU-hours of training and validation, summed over trials."""
    register_model: bool = True
    """Register the best trial's model in MLflow at the end of a run, as a new version if it changed."""
    objective: str = "val/miou"
    """Metric of the validation to maximise: val/miou, val/thin_miou, val/iou/<class> or val/boundary/<class>; or two,
    separated by a comma. Of two, the first one decides which trial is the best."""
    keep: str | None = None
    """Classes, separated by commas, whose validation IoU a trial must keep to be the best: at most --max-drop below the
    repeats of the baseline family or, if there are none, below the untrained checkpoint."""
    max_drop: float = Field(0.005, ge=0, lt=1)
    """Largest decrease of the IoU of the classes of --keep."""
    sampler: Literal["auto", "gp", "tpe", "random"] = "auto"
    """Method that proposes points; auto is a Gaussian process with a prior around the start point, up to 250 finished
    trials and then TPE, or TPE from the start if there is a pruner; gp is Optuna's Gaussian process up to 1,000
    finished trials."""
    trial_seeds: Literal["distinct", "common"] = "distinct"
    """Seed of a trial: distinct is `train.seed` plus the trial's number, common is `train.seed` for all trials."""
    warm_start: tuple[str, ...] = ()
    """Other studies of the storage, whose best points are the first trials after trial 0 and further centres of the
    prior of the sampler auto, on the settings that both search."""
    pruner: Literal["none", "asha", "hyperband", "median", "wilcoxon", "first-epochs", "short-full"] = "none"
    """Method that stops weak trials early: asha, hyperband and median compare with earlier trials, wilcoxon each
    validation frame with trial 0; first-epochs trains all points for a quarter of the epochs and a few of them again in
    full; short-full does so with complete short schedules, and one point in three in full."""
    confirm: int = Field(0, ge=0)
    """Number of best points that are trained again with other seeds after the search, as part of --trials and within
    its time; the best trial is then the one whose 95 % interval over these repeats has the highest lower end."""
    confirm_seeds: int = Field(3, ge=2)
    """Repeats of each point of --confirm."""
    storage: str = Field("runs", min_length=1, pattern=r"^(s3://|[^?#]*$)")
    """Folder, or s3://bucket/prefix, of studies: checkpoints, reports and, in a folder, the ledger."""
    ledger_url: str | None = None
    """Address of the ledger's database, postgresql:// for a team; by default an SQLite file in the study's folder."""
    tracking_uri: str | None = None
    """Address of the MLflow server or database; by default <storage>/mlflow.db."""
    ray_address: str | None = None
    """Address of a running Ray cluster to join; by default a private one is started on this machine."""
    cpus_per_trial: float = Field(1, gt=0)
    """CPU cores reserved for a trial; at least one for each of its processes."""
    gpus_per_trial: float | None = Field(None, ge=0)
    """GPUs reserved for a trial: a fraction, or one for each of its processes; by default one for each process if the
    machine has GPUs."""
    processes_per_trial: int | None = Field(None, ge=1)
    """Processes that train one model together, on one node; by default one for each GPU of the trial."""
    mps: Literal["auto", "off"] = "auto"
    """NVIDIA MPS for trials that share a GPU: auto starts it with a private Ray, if it is installed and a process can
    use a GPU under it; off starts none."""
    max_concurrent: int | None = Field(None, ge=1)
    """Largest number of trials at once; by default as many as the resources allow."""
    max_failures: int = Field(2, ge=0)
    """Restarts of a trial whose process died."""
    max_failed_trials: int = Field(5, ge=1)
    """Failed trials in a row that stop the run."""
    on_oom: Literal["fail", "halve"] = "fail"
    """Action when memory runs out: fail the trial, or continue with half the micro-batch and twice the accumulation."""
    allow_changed_batch: bool = False
    """Allow a trial whose micro-batch was halved to be the best."""
    keep_checkpoints: int = Field(3, ge=1)
    """Number of best trials whose weights are kept; those of trial 0 are always kept."""
    accept_changes: bool = False
    """Continue a study with changed settings, data or version, and record the change."""
    verbose: bool = False
    """Print the start and every epoch of each trial; by default only its end and, unless the output is a terminal, the
    progress of the study once a minute."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metrics to maximise, one or two."""
        return split_names(self.objective)

    @property
    def repeats(self) -> int:
        """Number of trials that are repeats of --confirm."""
        return self.confirm * self.confirm_seeds

    @property
    def search_trials(self) -> int:
        """Number of trials that are no repeats."""
        return self.trials - self.repeats

    @property
    def kept_classes(self) -> tuple[str, ...]:
        """Keys of the classes of --keep."""
        return () if self.keep is None else split_names(self.keep)

    @property
    def processes(self) -> int:
        """Number of processes of a trial."""
        return self.processes_per_trial or max(1, int(self.gpus_per_trial or 1))

    @property
    def resolved_sampler(self) -> str:
        """The sampler, with `auto` as `tpe` if there is a pruner: the Gaussian process ignores pruned trials."""
        return "tpe" if self.sampler == "auto" and self.pruner != "none" else self.sampler
