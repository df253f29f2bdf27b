"""`srl inspect`: a run's log in the terminal, printed or followed."""
