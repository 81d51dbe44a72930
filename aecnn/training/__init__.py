"""Local training of the joint AE-CNN at one hospital."""
