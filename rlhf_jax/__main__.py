"""`python -m rlhf_jax`: the command `rlhf-jax`."""

import sys

from rlhf_jax.cli import main

sys.exit(main())
