"""What the commands share: options, exit codes, one-line errors, signals."""
