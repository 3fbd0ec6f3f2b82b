"""Fuzzing of the Python side: files, bundles and substreams are mutated by their structure."""
