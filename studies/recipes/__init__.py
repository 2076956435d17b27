"""The recipes in a dense form and with experts at equal parameters: loss curves over seeds, and throughput."""
