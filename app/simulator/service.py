"""Who is being served: slots of a model, for which calls wait in order, as in vLLM or Ollama.

Such a server never refuses: what it cannot serve yet waits inside it. A model is known here as long as a call of
it is in flight.
"""

import asyncio
from collections import OrderedDict

_MOST_PEAKS = 10_000


class _Model:
    def __init__(self) -> None:
        self.serving = 0
        self.waiting: OrderedDict[Turn, None] = OrderedDict()


class Turn:
    """One call's place. `served` is done when the call may be worked on; `leave()` gives back slot or place, once."""

    def __init__(self, service: "Service", model: str, slots: int | None) -> None:
        self.model = model
        self.slots = slots
        self.served: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._service: Service | None = service

    def leave(self) -> None:
        service, self._service = self._service, None
        if service is not None:
            service.left(self)


class Service:
    """Attributes: peaks: The most calls that were in service at once, per model; the first 10,000 models."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._models: dict[str, _Model] = {}

    def in_flight(self, name: str) -> int:
        """Returns: The model's calls, in service or waiting."""
        model = self._models.get(name)
        return 0 if model is None else model.serving + len(model.waiting)

    def enter(self, name: str, slots: int | None) -> Turn:
        """Takes a slot or a place in the queue. Args: slots: None: there are always enough."""
        model = self._models.setdefault(name, _Model())
        turn = Turn(self, name, slots)
        if not model.waiting and (slots is None or model.serving < slots):
            self._serve(model, turn)
        else:
            model.waiting[turn] = None
        return turn

    def left(self, turn: Turn) -> None:
        """For `Turn.leave` alone."""
        model = self._models[turn.model]
        if not turn.served.done():
            del model.waiting[turn]
        else:
            model.serving -= 1
            while model.waiting and (turn.slots is None or model.serving < turn.slots):
                self._serve(model, model.waiting.popitem(last=False)[0])
        if not model.serving and not model.waiting:
            del self._models[turn.model]

    def _serve(self, model: _Model, turn: Turn) -> None:
        model.serving += 1
        turn.served.set_result(None)
        if turn.model in self.peaks or len(self.peaks) < _MOST_PEAKS:
            self.peaks[turn.model] = max(self.peaks.get(turn.model, 0), model.serving)

    def reset(self) -> None:
        """Peaks begin again, at what is in service now."""
        self.peaks = {name: model.serving for name, model in self._models.items() if model.serving}
