"""Where the command begins: ``napari-arssr``, and ``python -m napari_arssr``."""

import os
import signal
import sys
from types import FrameType

_INTERRUPTED = b"napari-arssr: Interrupted; nothing was begun.\n"


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, _INTERRUPTED)
    os._exit(130)


def main() -> int:
    """Run one command of the process's own arguments.

    What the command line needs is imported here, and Ctrl-C while it is must not end in a
    traceback. Once it is imported the command line listens itself.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from napari_arssr import cli

    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
