"""A process without the SDK: the test speaks the worker's protocol in its place.

With `IGNORES_SIGTERM` in its environment it is ended by force only.
"""

import os
import signal

if "IGNORES_SIGTERM" in os.environ:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("started", flush=True)
while True:
    signal.pause()
