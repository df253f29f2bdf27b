"""Measures a model on named benchmarks: greedy, avg@k, pass@k and maj@k.

Every sample is kept with its verdict. `environments/benchmarks.py` defines the benchmarks and how
their answers are read.
"""
