"""`srl inspect`: a run's log in the terminal, printed, followed or browsed."""
