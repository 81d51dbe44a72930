"""How good a model is: AUROC and its kin, pooled over hospitals by adding histograms, and the report people read."""
