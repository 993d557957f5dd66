"""Studies: matrices of runs, their evaluation and reports. Not in the wheel; run `python -m research.study NAME` in a
clone."""
