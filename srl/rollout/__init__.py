"""Completions of the current policy, token by token, and what they are worth."""
