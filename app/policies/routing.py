"""Which targets may answer a model's name, in which order."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.settings import GatewaySettings, Strategy


@dataclass(frozen=True, slots=True)
class Target:
    """Attributes:
    upstream: Its name in the settings.
    model: The model's name there; None where a call names none.
    """

    upstream: str
    model: str | None


class Router:
    """Resolves names: a `[models.NAME]` entry, else `UPSTREAM/MODEL`, else the first upstream, name unchanged."""

    def __init__(
        self,
        aliases: Mapping[str, tuple[Target, ...]],
        upstreams: tuple[str, ...],
        strategies: Mapping[str, Strategy] | None = None,
    ) -> None:
        self.aliases = aliases
        self.upstreams = upstreams
        self._strategies = strategies or {}

    @classmethod
    def from_settings(cls, settings: GatewaySettings) -> "Router":
        def target(text: str) -> Target:
            upstream, _, model = text.partition("/")
            return Target(upstream, model)

        aliases = {name: tuple(map(target, entry.targets)) for name, entry in settings.models.items()}
        strategies = {name: entry.strategy for name, entry in settings.models.items()}
        return cls(aliases, tuple(settings.upstreams), strategies)

    def strategy(self, model: str | None) -> Strategy:
        """Returns: How a target is chosen for this name, where it has several."""
        return self._strategies.get(model or "", "fallback")

    def route(self, model: str | None) -> tuple[Target, ...]:
        """Returns: The targets to try in turn, at least one.

        A call without a model may belong to any upstream (a stored response, say): all are asked in turn.
        """
        if model is None:
            return tuple(Target(upstream, None) for upstream in self.upstreams)
        if model in self.aliases:
            return self.aliases[model]
        upstream, _, rest = model.partition("/")
        if rest and upstream in self.upstreams:
            return (Target(upstream, rest),)
        return (Target(self.upstreams[0], model),)
