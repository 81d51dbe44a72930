"""From a folder of radiographs and tables to batches: manifest, images, checks, synthetic data."""
