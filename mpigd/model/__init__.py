"""Models: losses, penalties, the objective over distributed rows, and its derivatives."""
