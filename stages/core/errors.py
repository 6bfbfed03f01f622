"""The error that is the user's to mend."""


class InputError(ValueError):
    """The user's mistake, as ``<key or file>: expected <what>, got <value>``."""
