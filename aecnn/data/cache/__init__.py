"""Radiographs decoded once into files that training maps into memory: what lies there, how it is written and read.

`build` and `verify` write and check it, `lookup` finds what is still true, `read` gives batches. Only `read` needs
PyTorch, so that the processes that decode start fast.
"""
