"""`python -m electra_exit COMMAND ...`, the entry point for torchrun and accelerate."""

import sys

from .main import main


if __name__ == "__main__":
    sys.exit(main())
