"""Options as people type them, `key=value`, brought into Hydra's grammar, in which a path may not be what it is.

Hydra knows no letters but a to z outside of quotes, no # and no ~, and takes = , ( ) [ ] { } and ${ for its own.
"""

import os
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException

_OPTION = re.compile(r"([+~]*\w[\w./@:-]*)=(.+)", re.DOTALL)
_GRAMMAR = frozenset("=,()[]{}'\"")


def quoted(argument: str) -> str:
    """An argument of the command line, its value in quotes where it can only be text and Hydra would not take it so.

    That is the name of something that exists, and what the grammar has no meaning for at all. ~/ is the home directory,
    as in the shell, which leaves it alone behind a "=". Everything else comes back as it is.
    """
    match = _OPTION.fullmatch(argument)
    if match is None or (read := _read_as(argument)) == match[2]:
        return argument
    value = os.path.expanduser(match[2])
    if os.path.exists(value):
        value = as_text(value)
    elif read is not None or _GRAMMAR & set(value):
        return argument
    return f"{match[1]}={QuotedString(value, Quote.single).with_quotes()}"


def as_text(value: str) -> str:
    """For OmegaConf, which then sees no interpolation."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)


def how_to_quote(error: OverrideParseException) -> str:
    """One line for an option that is not in the grammar."""
    key, _, value = error.override.partition("=")
    option = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    return (
        f'{error.override}: not in the grammar of options; if the value is text, such as a path, quote it: "{option}"'
    )


def _read_as(argument: str) -> str | None:
    """The text that Hydra takes a value for, an interpolation's in words; None where it cannot read it."""
    try:
        value = OverridesParser.create().parse_override(argument).value()
    except HydraException:
        return None
    if value is None or isinstance(value, bool):
        return argument.partition("=")[2]  # null and true are no paths
    return f"interpolated: {value}" if "${" in str(value) else str(value)
