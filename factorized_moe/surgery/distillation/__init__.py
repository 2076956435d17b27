"""Replacements fitted to what the original computes, layer by layer."""
