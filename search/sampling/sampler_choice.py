"""Choice of the sampler of a trial by the names in SearchConfig."""

from collections.abc import Mapping, Sequence

import numpy as np
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from search.sampling.samplers import AvoidingGPSampler, Prior, SobolSampler, Space

GP_TRIALS = {"auto": 250, "gp": 1000}
"""Number of COMPLETE trials from which TPE replaces the Gaussian process, by name of the sampler: the time that the
process needs for a suggestion grows with the cube of this number.  Measured with 7 settings and 63 open trials."""


def build_sampler(
    name: str,
    space: Space,
    *,
    trials: int,
    seed: int,
    number: int,
    complete: int,
    sobol_index: int,
    centres: Sequence[Mapping[str, float]],
    prior: Prior,
) -> tuple[str, BaseSampler]:
    """Build the sampler of one trial.

    A sampler is used for one suggestion, so that the suggestion depends on nothing but the trials of the study and the
    arguments.

    Args:
        name: `auto` or `gp` (Sobol points, a Gaussian process, then TPE from GP_TRIALS on), `tpe` or `random`.
        space: searched settings by dotted name.
        trials: budget of the study; with a small budget fewer trials are sampled before the model is used.
        seed: of the study.
        number: of the trial.
        complete: number of COMPLETE trials.
        sobol_index: number of Sobol points that the study has.
        centres: of the prior, see PriorGuidedSampler; without one `auto` is Optuna's Gaussian process, as `gp` is.
        prior: its strength and width.

    Returns:
        What chooses the point (see `TrialRecord.origin`), and the sampler.
    """
    fresh = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    if name == "random":
        return "random", RandomSampler(seed=fresh)
    sobol = SobolSampler(space, seed, sobol_index)
    if name == "tpe" or complete >= GP_TRIALS[name]:
        return "tpe", TPESampler(n_startup_trials=min(10, trials // 2), seed=fresh)
    if complete < max(1, min(4, trials // 2)):
        return "sobol", sobol
    if name == "auto" and centres:
        from search.sampling.prior_guided import PriorGuidedSampler  # imports scipy.stats, see SobolSampler

        return "gp", PriorGuidedSampler(space, sobol, fresh, centres, prior)
    return "gp", AvoidingGPSampler(space, sobol, fresh)
