"""Shows a run's log in the terminal, or follows it while the run goes on: `srl inspect`."""
