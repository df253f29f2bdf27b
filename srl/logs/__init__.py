"""Reads a run's logs: an index, filters, figures, and the views of them. Needs no torch."""
