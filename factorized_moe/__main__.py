"""The `factorized-moe` command as ``python -m factorized_moe``, for this Python among several."""

import sys

from factorized_moe.cli import main

if __name__ == "__main__":
    sys.exit(main())
