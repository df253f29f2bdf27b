"""Reading a run's logs: the index, filters, figures, and the views of them. No torch here."""
