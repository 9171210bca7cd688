"""Compare approach families: trained with several seeds, evaluated on the test split."""
