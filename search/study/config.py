"""Settings of a search: how many trials, on what, stored where. The section `search` of a configuration file."""

from typing import Literal

from pydantic import Field

from fgseg.config.settings import Section


class SearchConfig(Section):
    trials: int = Field(20, ge=1)
    """Trials of the whole study, finished ones included."""
    storage: str = Field("runs", min_length=1, pattern=r"^(s3://|[^?#]*$)")
    """Folder, or s3://bucket/prefix, that receives studies: checkpoints, reports and, in a folder, the ledger."""
    ledger_url: str | None = None
    """Address of the ledger's database, postgresql:// for a team; by default an SQLite file in the study's folder."""
    tracking_uri: str | None = None
    """Address of the MLflow server or database; by default <storage>/mlflow.db."""
    ray_address: str | None = None
    """Address of a running Ray cluster; by default a private one is started on this machine."""
    cpus_per_trial: float = Field(1, gt=0)
    """Processor cores reserved for a trial; at least one for each of its processes."""
    gpus_per_trial: float | None = Field(None, ge=0)
    """GPUs reserved for a trial: a fraction, or one for each of its processes; by default so many if there are any."""
    processes_per_trial: int | None = Field(None, ge=1)
    """Processes that train one model together, on one node; by default one for each GPU of the trial."""
    max_concurrent: int | None = Field(None, ge=1)
    """Most trials at once; by default as many as the resources carry."""
    sampler: Literal["auto", "gp", "tpe", "random"] = "auto"
    """How points are proposed; auto is the Gaussian process up to 250 finished trials and then TPE, or TPE throughout
    where trials are pruned; gp is the Gaussian process up to 1,000."""
    pruner: Literal["none", "asha", "median"] = "none"
    """How weak trials are stopped early."""
    max_failures: int = Field(2, ge=0)
    """How often a trial whose process died is started again."""
    max_failed_trials: int = Field(5, ge=1)
    """Trials that may fail in a row before the run stops."""
    on_oom: Literal["fail", "halve"] = "fail"
    """When memory runs out: fail the trial, or go on with half the micro-batch and twice the accumulation."""
    allow_changed_batch: bool = False
    """Whether a trial whose micro-batch was changed may be the best."""
    keep_checkpoints: int = Field(3, ge=1)
    """Finished trials whose weights are kept, the best ones; trial 0's are kept as well."""
    register_model: bool = True
    """Register the best trial's model in MLflow at the end of a run, as a new version where it changed."""
    accept_changes: bool = False
    """Continue a study under another identity, and record the change."""

    @property
    def processes(self) -> int:
        """Processes of a trial."""
        return self.processes_per_trial or max(1, int(self.gpus_per_trial or 1))

    @property
    def resolved_sampler(self) -> str:
        """What `auto` means: the Gaussian process sees no pruned trials, TPE learns from them."""
        return "tpe" if self.sampler == "auto" and self.pruner != "none" else self.sampler
