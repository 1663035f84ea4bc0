"""The one exception a user is meant to read: one line, the offending value, what to do."""


class UserError(ValueError):
    """Bad input. Command lines print the message on one line and exit with code 2."""
