"""Search the hyperparameters of street-view segmentation: many trials of `fgseg`, on Ray, in one ledger."""
