"""A GPT-2 with experts in every MLP, on shards of tokens."""
