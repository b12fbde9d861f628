"""The control test: whether music does what its caption says."""
