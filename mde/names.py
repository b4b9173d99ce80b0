"""What people call things (sets, frames, files, devices), made fit for where it goes: each place takes other characters
for its own."""

import hashlib
import re

LONGEST = 50  # characters of a file's name: at most 200 bytes, which leaves room for suffixes and for what is temporary
# Control characters, what turns the direction of a line or ends it, and the halves that undecodable bytes become.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> str:
    """On one line and without effect on a terminal: what cannot be seen is written as an escape."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def utf8(text: object) -> str:
    """What can be encoded: a byte of a file's name that is no UTF-8 is written as an escape."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def file_name(text: str) -> str:
    """One part of a path, or of a key in W&B. What had to be changed ends in a hash, so that two names stay two."""
    name = re.sub(r"[^\w .,+()-]+", "_", text).strip(" .")
    if name == text and len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(utf8(text).encode()).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}_{digest}"
