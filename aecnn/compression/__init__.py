"""Radiographs as compressed files: the latent in 8 bits, packed without loss, in a format of its own."""
