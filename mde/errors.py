"""The one exception that a user is meant to read."""


class MdeError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where (a file, an option), and the remedy.

    The entry points print it without a traceback and exit with status 2; library code raises it and never prints.
    """
