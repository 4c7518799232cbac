"""Callbacks run after every optimiser step."""
