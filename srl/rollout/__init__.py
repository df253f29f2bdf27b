"""Samples completions from the current policy, parses them and scores them."""
