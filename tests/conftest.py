"""What holds for every test: an interrupt ends what a test starts, however the tests themselves were started."""

import signal

pytest_plugins = ["pytester"]

# `nohup pytest &` makes the tests, and by them whatever they start, ignore interrupts. A handler of Python's own is not
# handed on: programs that the tests start have the default again.
signal.signal(signal.SIGINT, signal.default_int_handler)
