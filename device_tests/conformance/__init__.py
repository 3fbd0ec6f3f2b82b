"""Golden files, the matrix of backends, damaged files, latency."""
