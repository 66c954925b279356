"""What holds for every test: an interrupt ends what a test starts, and no test fails because a machine is busy."""

import signal

from hypothesis import settings

pytest_plugins = ["pytester"]

# `nohup pytest &` makes the tests, and by them whatever they start, ignore interrupts. A handler of Python's own is not
# handed on: programs that the tests start have the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Hypothesis would fail an example that takes more than 200 ms.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
