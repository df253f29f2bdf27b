"""Measures a policy: solves problems, judges answers, computes figures with intervals."""
