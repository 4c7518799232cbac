"""What is fitted: losses, penalties, the objective over distributed rows."""
