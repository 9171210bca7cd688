"""Training of one model: the loop over epochs, one step, and the evaluation on the test split."""
