"""What experts cost at the uMoE paper's sizes: parameters, FLOPs, ranks, time and memory."""
