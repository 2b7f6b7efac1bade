"""Options: the choice of open ones, and the construction of objects from a config."""
