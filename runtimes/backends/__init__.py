"""One backend per runtime."""
