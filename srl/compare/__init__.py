"""Many runs from one file, and one table of them: `python -m srl compare`.

`plan` reads the file, `runner` makes the runs that are missing, `origin` knows what each started
from, `results` reads them again, `figures` are the statistics, and `table` shows them.
"""
