"""For all tests."""

from __future__ import annotations

import signal

import hypothesis

# Under nohup, cron and some CI systems SIGINT comes ignored, and there would be no KeyboardInterrupt to be tested.
if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# For who only asks whether anything fails, as tests.mutants does.
hypothesis.settings.register_profile(
    "first-failure", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate], database=None
)
