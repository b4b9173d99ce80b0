"""What the system refuses (space, rights, open files, shared memory), as the one line that a person can act on."""

import errno
import re
import traceback
from collections.abc import Iterator

FREE = "free disk space"
ELSEWHERE = "choose another folder"
LIMIT = "raise the limit of open files, ulimit -n 65535"
OUTCOMES = {  # error number -> what did not happen, and the remedy
    errno.ENOSPC: ("not written", FREE),
    errno.EDQUOT: ("not written", FREE),
    errno.EROFS: ("not written", ELSEWHERE),
    errno.EISDIR: ("not opened", f"take the folder away, or {ELSEWHERE}"),
    errno.EACCES: ("no access", f"{ELSEWHERE}, or give this user the right"),
    errno.EPERM: ("no access", f"{ELSEWHERE}, or give this user the right"),
    errno.EMFILE: ("not opened", LIMIT),
    errno.ENFILE: ("not opened", LIMIT),
}
NO_SHARED_MEMORY = "no shared memory left for the loader's workers (/dev/shm is full); give workers=0, or start the "
NO_SHARED_MEMORY += "container with more, docker run --shm-size=2g"
# What torch and multiprocessing raise has these words and no class of its own. A worker that touches a page for which
# there is no memory dies of a bus error, of which torch says what it means.
# "Shared memory" alone may be a GPU's.
SHARED_MEMORY = re.compile(r"unable to mmap|/torch_|bus error|multiprocessing/(synchronize|heap)\.py", re.IGNORECASE)
OPEN_FILES = re.compile(r"Too many open files|received 0 items of ancdata")
NUMBERED = re.compile(r"\[Errno (\d+)\] ([^:\n]+)(?:: '([^'\n]+)')?")


def remedy(error: OSError) -> str:
    """Against what kept a file from being written."""
    return OUTCOMES.get(error.errno or 0, ("", f"{FREE} or {ELSEWHERE}"))[1]


def refused(error: BaseException, where: object) -> str | None:
    """The line, where the error is, or comes from, a refusal; None for every other.

    where  named where the error names no file: writing to an open one
    """
    for each in _chain(error):
        if isinstance(each, (OSError, RuntimeError)) and (line := _line(each, where)):
            return line
    return None


def _line(error: OSError | RuntimeError, where: object) -> str | None:
    text = str(error)  # from a loader's worker: the traceback there
    if OPEN_FILES.search(text):
        return f"{_file(error) or where}: not opened (Too many open files); {LIMIT}"
    frames = "".join(f"{frame.filename}\n" for frame in traceback.extract_tb(error.__traceback__)[-1:])
    if SHARED_MEMORY.search(text + frames):
        return NO_SHARED_MEMORY
    if not isinstance(error, OSError):
        return None
    number, reason = error.errno, error.strerror
    if number is None and (match := NUMBERED.search(text)):
        number, reason = int(match[1]), match[2]
    if number not in OUTCOMES:
        return None
    outcome, advice = OUTCOMES[number]
    return f"{_file(error) or where}: {outcome} ({reason}); {advice}"


def _file(error: OSError | RuntimeError) -> str | None:
    """The file that the error names; the one written to, where it names two."""
    names = [getattr(error, name, None) for name in ("filename2", "filename")]
    match = NUMBERED.search(str(error))
    return next((str(name) for name in names if name is not None), match[3] if match else None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
