"""The claims of the uMoE paper beside what the studies found, on one page."""
