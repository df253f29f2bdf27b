"""Reads and writes the run folder and the records in it; works on machines without torch."""
