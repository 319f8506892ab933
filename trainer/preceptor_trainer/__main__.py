"""`python -m preceptor_trainer`."""

import sys

from preceptor_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
