"""``python -m mnist_lightning``, and the script ``mnist-lightning``."""

import os
import sys


def main() -> int:
    """Run the command line, and return its exit code."""
    # Threads that wait would otherwise spin, and take CPU time from other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # So that --net mynet.CNN is found here by the script too, as with python -m.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from mnist_lightning.cli import main as cli  # here: torch reads the setting above at its import

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
