"""`python -m pixpod_tools.container`, as scripts/build_image runs it."""

import sys

from pixpod_tools.container.cli import main

sys.exit(main())
