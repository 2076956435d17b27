"""What a cheaper gate for a thousand experts and more costs in accuracy, beside the full gate and product keys."""
