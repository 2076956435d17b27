"""Runs scripts one after the other, each in a fork of this process: `factorized_moe` is imported once for all of them.

Reads lines from standard input, a script and the folder to run it in with a tab between; answers each with the exit
code. What the script prints goes to `stdout` and `stderr` in its folder. Warnings are errors, but for what torch
deprecates in itself and uses when it compiles.
"""

import os
import runpy
import sys
import traceback
import warnings


def run(script: str, folder: str) -> int:
    """Run a script as if a fresh interpreter did, and return its exit code."""
    os.chdir(folder)
    for stream in ("stdout", "stderr"):
        target = os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, getattr(sys, stream).fileno())
    sys.path.insert(0, folder)
    sys.argv = [script]
    warnings.resetwarnings()
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except BaseException:  # noqa: BLE001  # SystemExit too: this process must not go on as the runner
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def main() -> None:
    """Answer line by line until standard input ends."""
    import factorized_moe.layers  # noqa: F401  # what every page imports first

    for line in sys.stdin:
        script, folder = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            os._exit(run(script, folder))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
