import signal


def pytest_configure() -> None:
    # A shell ignores SIGINT for what it starts in the background, and with it all processes of the
    # tests would, some of which are to be interrupted.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
