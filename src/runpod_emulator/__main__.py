"""`python -m runpod_emulator`: see `cli`."""

import sys

from runpod_emulator.cli import main

sys.exit(main())
