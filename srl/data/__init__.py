"""Turns expert solutions into rows: steps, prompts, splits, and the order of the rows."""
