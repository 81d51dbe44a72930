"""The science of the joint AE-CNN: data, model, training and evaluation in PyTorch, with no knowledge of Flower."""
