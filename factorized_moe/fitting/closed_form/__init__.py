"""Fits in closed form: experts that start as one matrix, which a low rank holds as well as it can."""
