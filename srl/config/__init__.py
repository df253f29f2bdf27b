"""Settings, strictly read: the fields of the trainers, and a whole experiment file."""
