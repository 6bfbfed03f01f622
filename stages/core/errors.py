"""The error that is the user's to mend."""


class InputError(ValueError):
    """What the user gave isn't what was expected; the message reads ``<key or file>: expected <what>, got <value>``."""
