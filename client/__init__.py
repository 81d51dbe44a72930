"""The hospital's side of the federation: trains on its own radiographs and answers with weights and sums."""
