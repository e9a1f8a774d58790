"""What ``doctor`` checks: a check returns what it found, or raises an error that says what is wrong."""
