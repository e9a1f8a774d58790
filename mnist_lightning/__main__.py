"""``python -m mnist_lightning``, and the script ``mnist-lightning``."""

import os
import sys


def main() -> int:
    """Run the command line, and return its exit code."""
    # Threads that wait would otherwise spin, and take CPU time from other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.getcwd() not in sys.path:  # so that --model.net mynet.CNN is found here, as with python -m
        sys.path.insert(0, os.getcwd())
    from mnist_lightning.cli import main as run  # here, since torch reads the setting above when it is imported

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
