"""The configuration: its fields, where they come from, and units."""
