"""The ledger: the database of a study, with its trials, epochs, lock and fencing."""
