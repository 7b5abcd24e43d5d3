"""`python -m mlalab`."""

import sys

from mlalab.cli import main

sys.exit(main())
