"""Reads settings strictly: the fields of the trainers, and whole experiment files."""
