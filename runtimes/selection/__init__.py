"""The choice among backends: proof, trial, measurement, memory, fallback."""
