"""Names for decompositions, open to third parties."""

from __future__ import annotations

import difflib

from factorized_moe.decompositions.base import Decomposition

__all__ = ["available_decompositions", "get_decomposition", "name_of", "register"]

_REGISTRY: dict[str, Decomposition] = {}
_ALIASES: dict[str, str] = {}


def register(name: str, decomposition: Decomposition, *, aliases: tuple[str, ...] = ()) -> None:
    """Give a decomposition a name. Names are compared without case.

    Args:
        name: The short name under which it is listed.
        decomposition: An instance; it holds no tensors and is shared by all that name it.
        aliases: Further names.

    Raises:
        TypeError: If the decomposition is not an instance of `Decomposition`.
        ValueError: If a name is empty or taken.

    Example:
        >>> from factorized_moe.decompositions import CP
        >>> register("cp", CP())
        Traceback (most recent call last):
        ValueError: decomposition name 'cp' is taken; choose another
    """
    if not isinstance(decomposition, Decomposition):
        raise TypeError(f"register takes an instance of Decomposition, got {decomposition!r}; write MyClass()")
    keys = [_key(name), *(_key(alias) for alias in aliases)]
    for key in keys:
        if not key:
            raise ValueError(f"a decomposition's name must not be empty, got {name!r}")
        if key in _REGISTRY or key in _ALIASES:
            raise ValueError(f"decomposition name {key!r} is taken; choose another")
    _REGISTRY[keys[0]] = decomposition
    _ALIASES.update(dict.fromkeys(keys[1:], keys[0]))


def available_decompositions() -> tuple[str, ...]:
    """The registered names, sorted; aliases are not listed.

    Example:
        >>> set(available_decompositions()) >= {"cp", "tr", "tt", "tucker"}
        True
    """
    return tuple(sorted(_REGISTRY))


def get_decomposition(decomposition: str | Decomposition) -> Decomposition:
    """The decomposition of a name or alias; an instance is returned as it is.

    Raises:
        TypeError: If it is neither a name nor an instance.
        ValueError: If no decomposition has that name; the message gives the nearest.
    """
    if isinstance(decomposition, Decomposition):
        return decomposition
    if not isinstance(decomposition, str):
        raise TypeError(f"decomposition is a name or a Decomposition instance, got {decomposition!r}")
    key = _key(decomposition)
    key = _ALIASES.get(key, key)
    if key not in _REGISTRY:
        near = difflib.get_close_matches(key, [*_REGISTRY, *_ALIASES], n=1, cutoff=0.0)
        known = ", ".join(available_decompositions())
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown decomposition {decomposition!r}{hint} Registered: {known}")
    return _REGISTRY[key]


def name_of(decomposition: Decomposition) -> str:
    """The registered name of a decomposition, or its class's name if it has none."""
    names = (name for name, registered in _REGISTRY.items() if registered is decomposition)
    return next(names, type(decomposition).__name__)


def _key(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")
