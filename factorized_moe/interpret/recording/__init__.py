"""Coefficients of a model while it runs, in memory or in a folder, chunk by chunk."""
