"""The commands of `python -m srl`: one module each, and the options they take."""
