"""Pre-training at equal parameters, loss and accuracy over steps, and what the experts come to do."""
