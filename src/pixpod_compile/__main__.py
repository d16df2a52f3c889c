"""`python -m pixpod_compile`, as scripts/compile runs it."""

import sys

from pixpod_compile.cli import main

sys.exit(main())
