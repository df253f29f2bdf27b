"""Many runs from one file, and one table of them: `python -m srl compare`.

`plan` reads the file, `runner` makes the runs that are missing, `figures` are the statistics, and
`table` shows them.
"""
