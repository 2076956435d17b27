"""What recordings, weights and predictions tell about experts; every result is a `Measurement`."""
