"""Measurements: samples, steady state, cold start, energy, contenders."""
