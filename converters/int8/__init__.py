"""The exact int8 form of a graph: what is quantized, with which integers."""
