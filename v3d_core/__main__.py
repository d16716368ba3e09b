"""`python -m v3d_core` is the `v3d` command."""

import sys

from .cli import main

sys.exit(main())
