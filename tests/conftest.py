"""For all tests."""

from __future__ import annotations

import signal

# Under nohup, cron and some CI systems SIGINT comes ignored, and there would be no KeyboardInterrupt to be tested.
if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.default_int_handler)
