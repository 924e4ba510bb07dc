"""`python -m chalicelib` is the command line."""

import sys

from chalicelib.cli import main

if __name__ == "__main__":
    sys.exit(main())
