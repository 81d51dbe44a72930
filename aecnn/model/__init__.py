"""The joint AE-CNN: an autoencoder that compresses a radiograph and a CNN that classifies the compressed code."""
