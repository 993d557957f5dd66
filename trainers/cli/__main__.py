"""`python -m electra_exit COMMAND ...`, for torchrun and accelerate."""

import sys

from .main import main


if __name__ == "__main__":
    sys.exit(main())
