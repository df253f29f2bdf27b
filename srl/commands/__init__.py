"""Contains the commands of `python -m srl` and the options that they take."""
