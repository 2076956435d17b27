"""The `factorized-moe` command: reads options, calls the library, prints what it returns.

A sub-command is a module with a `COMMAND` (`command.py` says what that is) and a line in `running.py`. What it needs is
imported when it runs. Every error is one line on the standard error stream and exit code 2.
"""

from factorized_moe.cli.running import main

__all__ = ["main"]
