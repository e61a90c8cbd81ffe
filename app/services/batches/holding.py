"""What a worker has in its hands: slices of batches, cut into parcels, one upstream call each."""

from collections import deque
from dataclasses import dataclass, field

from app.store.commits import Change, Key, Stored
from app.store.ledger import Claim
from app.upstream.types import Trace
from app.wire import packing
from app.wire.batch_lines import LineError, read_line, split
from app.wire.batch_results import Usage, error_line
from app.wire.bits import Bits

_MOST_PACKED_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. Attributes: index: Its place in the slice."""

    index: int
    custom_id: str
    body: bytes


@dataclass(eq=False, slots=True)
class Parcel:
    """Lines that go in one call.

    Attributes:
        tries: So far; `excused`: those of them that were not the lines' fault.
        failed_at: On the loop's clock; 0: it has not failed.
    """

    slice: "HeldSlice"
    entries: tuple[Entry, ...]
    tries: int = 0
    excused: int = 0
    failed_at: float = 0.0
    launched_at: float = 0.0
    trace: Trace = field(default_factory=Trace)

    @property
    def is_waiting(self) -> bool:
        """Whether it was launched, but is with no upstream: not yet, or not again."""
        return not self.trace.flying and self.trace.cache != "shared"

    def alone(self) -> list["Parcel"]:
        """Returns: Each of its lines as a parcel of its own."""
        return [Parcel(self.slice, (entry,)) for entry in self.entries]


class HeldSlice:
    """A claimed slice, and what has become of its lines.

    Attributes:
        batch: The batch's row, as it was when the slice was claimed.
        size: Bytes.
        queue: Parcels that have not been sent, or are to be sent again now.
        is_dirty: Something is to be written.
    """

    def __init__(self, claim: Claim) -> None:
        self.batch = claim.batch
        self.key: Key = (claim.batch["number"], claim.number)
        self.size = claim.stop - claim.start
        self.queue: deque[Parcel] = deque()
        self.is_dirty = False
        self._version = claim.version
        self._lines = claim.lines
        self._done = Bits.of(claim.done, claim.lines)
        self._sent = Bits.of(claim.done, claim.lines)
        for index in claim.doubtful if claim.batch["on_doubt"] == "fail" else ():
            self._sent.set(index)

    @property
    def is_finished(self) -> bool:
        return self._done.count == self._lines

    def sent(self, parcel: Parcel) -> None:
        """From now on its lines may have been seen by an upstream."""
        for entry in parcel.entries:
            self._sent.set(entry.index)
        self.is_dirty = True

    def refused(self, parcel: Parcel) -> None:
        """It is known that its lines have come to nothing, and they are to be sent again."""
        for entry in parcel.entries:
            self._sent.clear(entry.index)
        self.is_dirty = True

    def done(self, entry: Entry, *, ok: bool, fields: bytes, usage: Usage | None = None) -> Stored:
        """Returns: The line's result, to be stored with the slice's next change."""
        self._sent.set(entry.index)
        self._done.set(entry.index)
        self.is_dirty = True
        return Stored(self.key, ok, fields, usage)

    def change(self) -> Change:
        """Returns: What is to be written now."""
        self.is_dirty = False
        change = Change(
            self.key,
            self._version,
            self._sent.bytes(),
            self._done.bytes(),
            self._sent.count,
            self._done.count,
            self.is_finished,
        )
        self._version += 1
        return change


def unpacked(claim: Claim, text: bytes, pack_inputs: int) -> tuple[HeldSlice, list[Stored]]:
    """Makes parcels of a claimed slice's lines.

    Args:
        text: The slice's bytes.
        pack_inputs: Embedding inputs in one call at most.
    Returns:
        The slice, and the results of lines that are not to be sent at all.
    """
    held, stored, entries = HeldSlice(claim), [], []
    done = Bits.of(claim.done, claim.lines)
    doubtful = set(claim.doubtful) if claim.batch["on_doubt"] == "fail" else set()
    found = split(text)[: claim.lines]
    for index, line in enumerate(found + [b""] * (claim.lines - len(found))):
        if done[index]:
            continue
        try:
            read = read_line(line, claim.batch["endpoint"])
        except LineError as error:  # it was good when it was validated
            broken = Entry(index, "", b"")
            stored.append(held.done(broken, ok=False, fields=error_line("", error.code, error.message)))
            continue
        entry = Entry(index, read.custom_id, bytes(read.body))
        if index in doubtful:
            told = error_line(entry.custom_id, "in_doubt", "a worker died while this call ran: it may have been made")
            stored.append(held.done(entry, ok=False, fields=told))
        else:
            entries.append(entry)
    held.queue.extend(_parcels(held, entries, pack_inputs))
    return held, stored


def _parcels(held: HeldSlice, entries: list[Entry], pack_inputs: int) -> list[Parcel]:
    if held.batch["endpoint"] != "/v1/embeddings" or not held.batch["pack_embeddings"]:
        return [Parcel(held, (entry,)) for entry in entries]
    parcels: list[Parcel] = []
    open_packs: dict[bytes, tuple[list[Entry], int, int]] = {}
    for entry in entries:
        key = packing.key_of(entry.body)
        if key is None:
            parcels.append(Parcel(held, (entry,)))
            continue
        inputs, size = len(packing.inputs_of(entry.body)), len(entry.body)
        pack, packed_inputs, packed_size = open_packs.get(key, ([], 0, 0))
        if pack and (packed_inputs + inputs > pack_inputs or packed_size + size > _MOST_PACKED_BYTES):
            parcels.append(Parcel(held, tuple(pack)))
            pack, packed_inputs, packed_size = [], 0, 0
        pack.append(entry)
        open_packs[key] = (pack, packed_inputs + inputs, packed_size + size)
    return parcels + [Parcel(held, tuple(pack)) for pack, *_ in open_packs.values()]
