"""`python -m modeling_radio distill ...` is `radio distill ...`, for `accelerate launch -m` and `torchrun -m`."""

import sys

from modeling_radio_cli import main


if __name__ == "__main__":
    sys.exit(main())
