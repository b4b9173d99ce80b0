import logging
import os
import sys
import warnings

import pytest

from mde.quiet import quiet


def test_nothing_is_heard_inside_and_everything_outside(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("library")
    logger.setLevel(logging.WARNING)  # whatever other tests left as the root's
    with quiet():
        print("inside")
        print("inside", file=sys.stderr)
        os.write(1, b"inside, from C")
        os.write(2, b"inside, from C")
        warnings.warn("inside", stacklevel=1)
        assert not logger.isEnabledFor(logging.WARNING)
        assert logger.isEnabledFor(logging.ERROR)
    os.write(2, b"outside, from C")
    print("outside")
    assert logger.isEnabledFor(logging.WARNING)
    heard = capfd.readouterr()
    assert (heard.out, heard.err) == ("outside\n", "outside, from C")


def test_an_error_restores_the_streams(capfd: pytest.CaptureFixture[str]) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(ValueError, match="seen"), quiet():
        raise ValueError("seen")
    os.write(1, b"heard")
    assert capfd.readouterr().out == "heard"
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)
