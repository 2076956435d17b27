"""Layers of experts put into an existing model in place of linear layers and MLPs."""
