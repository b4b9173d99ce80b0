"""Libraries that tell of their own steps, without it."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops warnings, log lines below errors, and whatever the block writes to standard output and error: progress bars
    that have no switch, and what C++ code says, which knows nothing of Python's streams.
    """
    disabled = logging.root.manager.disable
    sys.stdout.flush()
    sys.stderr.flush()
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as restore:
        for stream in (1, 2):
            saved = os.dup(stream)
            restore.callback(os.close, saved)
            restore.callback(os.dup2, saved, stream)
            os.dup2(nowhere.fileno(), stream)
        restore.callback(logging.disable, disabled)
        logging.disable(logging.WARNING)
        restore.enter_context(contextlib.redirect_stdout(nowhere))
        restore.enter_context(contextlib.redirect_stderr(nowhere))
        restore.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield
