"""The run folder and the records in it; read on machines without torch."""
