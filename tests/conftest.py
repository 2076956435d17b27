"""Settings every test shares: torch's threads and hypothesis' profiles."""

import os

import torch
from hypothesis import settings

# Workers of pytest-xdist already use the cores: with torch's own threads on top they slow each other down.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# A deadline measures the machine, not the code (a first call may compile or plan). In CI the same
# examples are drawn at every run and nothing is stored.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
