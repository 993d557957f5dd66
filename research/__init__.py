"""Studies: matrices of runs, judges and reports. Not in the wheel: `python -m research.study NAME` in a clone."""
