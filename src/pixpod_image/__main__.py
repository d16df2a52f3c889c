"""`python -m pixpod_image`, as scripts/image runs it."""

import sys

from pixpod_image.cli import main

sys.exit(main())
