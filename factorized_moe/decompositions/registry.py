"""Names for decompositions, open to third parties.

A program registers its own by `register`. An installed package offers one by an entry point: its ``pyproject.toml`` has

```toml
[project.entry-points."factorized_moe.decompositions"]
tucker2 = "my_package:Tucker2"
```

and the class (or an instance of it) is registered under that name when names are listed, or one is looked up that is
not registered yet: importing `factorized_moe` imports no other package.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from factorized_moe.decompositions.base import Decomposition

__all__ = [
    "ENTRY_POINT_GROUP",
    "Registration",
    "available_decompositions",
    "get_decomposition",
    "name_of",
    "on_registration",
    "register",
    "registered_decompositions",
    "registration_of",
]

ENTRY_POINT_GROUP = "factorized_moe.decompositions"
"""The group of entry points by which installed packages offer decompositions."""

_REGISTRY: dict[str, Decomposition] = {}
_ALIASES: dict[str, str] = {}
_LOADED: set[EntryPoint] = set()
_LISTENERS: list[Callable[[str], None]] = []


def register(name: str, decomposition: Decomposition, *, aliases: tuple[str, ...] = ()) -> None:
    """Give a decomposition a name. Names are compared without case.

    Args:
        name: The short name under which it is listed.
        decomposition: An instance; it holds no tensors and is shared by all that name it.
        aliases: Further names.

    Raises:
        TypeError: If the decomposition is not an instance of `Decomposition`, or a name is not a string.
        ValueError: If a name is empty or taken.

    Examples:
        >>> from factorized_moe.decompositions import CP
        >>> register("cp", CP())
        Traceback (most recent call last):
        ValueError: decomposition name 'cp' is taken; choose another
    """
    if not isinstance(decomposition, Decomposition):
        raise TypeError(f"register takes an instance of Decomposition, got {decomposition!r}; write MyClass()")
    if isinstance(aliases, str) or not all(isinstance(word, str) for word in (name, *aliases)):
        raise TypeError(f"name is a string and aliases a tuple of strings, got {name!r} and {aliases!r}")
    keys = [_key(name), *(_key(alias) for alias in aliases)]
    for key in keys:
        if not key:
            raise ValueError(f"a decomposition's name must not be empty, got {name!r}")
        if key in _REGISTRY or key in _ALIASES:
            raise ValueError(f"decomposition name {key!r} is taken; choose another")
    _REGISTRY[keys[0]] = decomposition
    _ALIASES.update(dict.fromkeys(keys[1:], keys[0]))
    for listener in _LISTENERS:
        listener(keys[0])


def on_registration(listener: Callable[[str], None]) -> None:
    """Call a function with every name: those registered so far now, and each further one when it is registered.

    Args:
        listener: Called with the name under which a decomposition is listed.
    """
    for name in registered_decompositions():
        listener(name)
    _LISTENERS.append(listener)


def registered_decompositions() -> tuple[str, ...]:
    """The names registered so far, sorted, without a look at installed packages; aliases are not listed."""
    return tuple(sorted(_REGISTRY))


def available_decompositions() -> tuple[str, ...]:
    """All names, sorted, those that installed packages offer included; aliases are not listed.

    Examples:
        >>> set(available_decompositions()) >= {"cp", "tr", "tt", "tucker"}
        True
    """
    _load_entry_points()
    return registered_decompositions()


def get_decomposition(decomposition: str | Decomposition) -> Decomposition:
    """The decomposition of a name or alias; an instance is returned as it is.

    Raises:
        TypeError: If it is neither a name nor an instance.
        ValueError: If no decomposition has that name; the message gives the nearest.
    """
    if isinstance(decomposition, Decomposition):
        return decomposition
    if not isinstance(decomposition, str):
        hint = f"; write {decomposition.__name__}()" if isinstance(decomposition, type) else ""
        raise TypeError(f"decomposition is a name or a Decomposition instance, got {decomposition!r}{hint}")
    key = _key(decomposition)
    if key not in _REGISTRY and key not in _ALIASES:
        _load_entry_points()
    key = _ALIASES.get(key, key)
    if key not in _REGISTRY:
        near = difflib.get_close_matches(key, [*_REGISTRY, *_ALIASES], n=1, cutoff=0.0)
        known = ", ".join(available_decompositions())
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown decomposition {decomposition!r}{hint} Registered: {known}")
    return _REGISTRY[key]


@dataclass(frozen=True)
class Registration:
    """A registered decomposition: its names, its class and its initialisations.

    Attributes:
        name: The name under which it is listed.
        aliases: Its further names, in the order in which they were given.
        summary: The first line of its class's docstring; empty if it has none.
        source: Where its class is defined, ``module:class``.
        initialisations: The names of its initialisations; the first is the default.
    """

    name: str
    aliases: tuple[str, ...]
    summary: str
    source: str
    initialisations: tuple[str, ...]


def registration_of(name: str) -> Registration:
    """What is registered under a name or an alias.

    Raises:
        TypeError: If it is not a string.
        ValueError: If no decomposition has that name; the message gives the nearest.

    Examples:
        >>> registration_of("lora").name, registration_of("low_rank").aliases
        ('low_rank', ('lora',))
    """
    if not isinstance(name, str):
        raise TypeError(f"registration_of takes a name, got {name!r}; of an instance, give name_of(instance)")
    decomposition = get_decomposition(name)
    key = _ALIASES.get(_key(name), _key(name))
    kind = type(decomposition)
    return Registration(
        name=key,
        aliases=tuple(alias for alias, target in _ALIASES.items() if target == key),
        summary=next(iter((kind.__doc__ or "").strip().splitlines()), ""),
        source=f"{kind.__module__}:{kind.__qualname__}",
        initialisations=tuple(decomposition.initialisations),
    )


def name_of(decomposition: Decomposition) -> str:
    """The registered name of a decomposition, or its class's name if it has none."""

    def same(registered: Decomposition) -> bool:  # a copied or unpickled layer holds a copy of the instance
        return type(registered) is type(decomposition) and vars(registered) == vars(decomposition)

    return next((name for name, registered in _REGISTRY.items() if same(registered)), type(decomposition).__name__)


def _load_entry_points() -> None:
    """Register what installed packages offer; a package that fails is named in a warning and left out."""
    for offer in entry_points(group=ENTRY_POINT_GROUP):
        if offer in _LOADED:
            continue
        _LOADED.add(offer)  # at once: one that fails is not tried again, and loading may ask for names
        try:
            loaded = offer.load()
            register(offer.name, loaded() if isinstance(loaded, type) else loaded)
        except Exception as error:  # noqa: BLE001  # somebody else's code may fail in any way
            package = f"{offer.dist.name} {offer.dist.version}" if offer.dist else "an unknown package"
            warnings.warn(
                f"decomposition {offer.name!r} of {package} is left out, as its entry point {offer.value!r} failed: "
                f"{type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=3,
            )


def _key(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")
