"""Trained models with a share of the singular vectors of every linear layer: quality against rank."""
