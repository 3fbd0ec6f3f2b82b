"""Results as text, page, trace, and compared with earlier ones."""
