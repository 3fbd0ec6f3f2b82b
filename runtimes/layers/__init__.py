"""Time per layer, where a runtime tells, against the peak of the machine."""
