"""Trained models: predictions, metrics, the table of coefficients."""
