"""Do the ledger, the checkpoints and MLflow agree?"""
