"""A model on named benchmarks: greedy, avg@k, pass@k and maj@k, every sample kept with its verdict.

Which benchmarks there are, and how their answers are read: `environments/benchmarks.py`.
"""
