"""``python -m mnist_lightning``."""

import signal
import sys

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while all that follows is imported there is nothing to be said

    from mnist_lightning.cli import main

    sys.exit(main())
