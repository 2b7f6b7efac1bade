"""Options: their kinds, the choice of open ones, and the way from a config to objects."""
