"""`python -m pixpod_tools.compile`, as scripts/compile runs it."""

import sys

from pixpod_tools.compile.cli import main

sys.exit(main())
