"""Judges of what was written: gate, parity, golden vectors, operators, report."""
