"""`python -m posterity`, the same as the command `posterity`."""

import sys

from posterity.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
