"""MLflow as a view of the ledger: runs, metrics, images, the registered model."""
