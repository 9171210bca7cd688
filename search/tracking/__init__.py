"""Write a study to MLflow from its ledger: runs, metrics, images, the registered model."""
