"""Makes many runs from one file and one table of them: `python -m srl compare`.

`plan_file` reads the file as a `plan`, `runner` makes the missing runs, `cell_run` reads the runs
from the disk, `results` computes the figures with the statistics of `figures`, and `table` shows
them.
"""
