"""Orders of contraction beside those of other libraries, on random networks of 3 to 40 operands."""
