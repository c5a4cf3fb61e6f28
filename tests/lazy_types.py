"""Checks of types that are made when a function is first called: most functions are never called in a process of tests.

``pyproject.toml`` names ``check`` as what jaxtyping's hook decorates every function of the package with.
"""

from collections.abc import Callable
from functools import cache
from typing import Any


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """``beartype(function)``, made at the first call."""

    @cache
    def checked() -> Callable[..., Any]:
        from beartype import beartype

        return beartype(function)

    return lambda *arguments, **options: checked()(*arguments, **options)
