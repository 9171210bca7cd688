"""Export a trial's model as a Transformers folder, and register it in MLflow."""
