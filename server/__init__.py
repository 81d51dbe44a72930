"""The coordinating centre's side of the federation: rounds, admission, averaging, evaluation and the run folder."""
