"""Studies of many runs: tuning, cross-validation, seeds and comparison."""
