"""The one exception for bad input; the command line prints its message as one line and exits with 2."""


class InputError(ValueError):
    """The caller's input cannot be used.

    The message says what was wrong, where (``file:line`` when there is one) and what to do.
    """


class DamageError(InputError):
    """A file is not what memscope wrote; who can make it again does so."""
