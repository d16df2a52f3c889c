"""`python -m runpod_emulator`: see `cli`."""

import sys

from runpod_emulator.command_line.cli import main

sys.exit(main())
