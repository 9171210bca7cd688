"""Find, load, tile, export and describe a trained model."""
