"""Which models of transformers can be changed, saved, loaded and run: every family, from tiny random configs."""
