"""Patient-level differential privacy: accounting, sampling of patients, per-patient gradients, the private step."""
