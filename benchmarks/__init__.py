"""What the layers cost, measured beside what they replace: ``python -m benchmarks``, or ``make bench``.

Nothing here is part of the installed package.
"""

import os

# What torch's profiler, read for memory, says on stderr: that it starts, and that memory from before is released.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
