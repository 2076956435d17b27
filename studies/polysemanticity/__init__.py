"""Whether more experts serve fewer classes each, and entmax fewer than softmax: on small images."""
