"""Attributes that are computed when first asked for, without a lock.

`functools.cached_property` of Python 3.11 holds a lock of its class while it computes. A process
forked just then, while another thread computes the attribute of any object, waits for it for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

_Value = TypeVar("_Value")


class lazy_property(Generic[_Value]):
    """A method as an attribute that is kept; two threads that ask at once may both compute it."""

    def __init__(self, compute: Callable[[Any], _Value]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> lazy_property[_Value]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> _Value: ...

    def __get__(self, instance: object | None, owner: type) -> lazy_property[_Value] | _Value:
        if instance is None:
            return self
        value = self._compute(instance)
        # Found before this descriptor from now on, also where the class is frozen.
        return instance.__dict__.setdefault(self._name, value)  # type: ignore[no-any-return]
