"""Experts changed while a model runs, one by one in a single pass, or for good."""
