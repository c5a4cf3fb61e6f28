"""The one exception for bad input; the command line prints its message as one line and exits with 2."""


class InputError(ValueError):
    """The caller's input cannot be used.

    The message says what is wrong, where it is (``file:line`` when there is one) and how to mend it.
    """


class DamageError(InputError):
    """A file is not as memscope wrote it; callers that can make it again do so."""
