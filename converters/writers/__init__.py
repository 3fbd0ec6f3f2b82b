"""One writer per target, and weights stored once for all of them."""
