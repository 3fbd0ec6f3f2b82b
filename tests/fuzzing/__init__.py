"""Fuzzing of the Python side: files and bundles are mutated by their structure."""
