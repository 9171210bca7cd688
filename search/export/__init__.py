"""A trained trial as a finished model: an ordinary Transformers folder, and a version in MLflow's registry."""
