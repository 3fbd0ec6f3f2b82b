"""The small graph between torch and the targets, and its exact rewritings."""
