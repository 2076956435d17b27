"""A pretrained backbone of transformers with a head, or its last MLPs, of experts."""
