"""Real pretrained models with one MLP upcycled: what it costs them, and what a short distillation gives back."""
