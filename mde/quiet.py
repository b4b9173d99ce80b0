"""Libraries that tell of their own steps, without it."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

# Never closed: a library that is imported in the block may keep it for its own log.
NOWHERE = open(os.devnull, "w")  # noqa: SIM115


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops warnings, log lines below errors, and whatever the block writes to standard output and error: progress bars
    that have no switch, and what C++ code says, which knows nothing of Python's streams.
    """
    disabled = logging.root.manager.disable
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.ExitStack() as restore:
        for stream in (1, 2):
            saved = os.dup(stream)
            restore.callback(os.close, saved)
            restore.callback(os.dup2, saved, stream)
            os.dup2(NOWHERE.fileno(), stream)
        restore.callback(logging.disable, disabled)
        logging.disable(logging.WARNING)
        restore.enter_context(contextlib.redirect_stdout(NOWHERE))
        restore.enter_context(contextlib.redirect_stderr(NOWHERE))
        restore.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield
