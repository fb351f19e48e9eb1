"""Several dirty maps and intent sets of one volume, shown as one set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from bitarray import bitarray

from .dirty import PAGE_BLOCKS, PAGE_BYTES, PAGE_MASK, PAGE_SHIFT, DirtyMap, IntentSet, describe_runs
from .units import Extent

__all__ = ["DirtyView"]


class DirtyView:
    """The union of maps and intent sets of one volume.

    Nothing is copied but the page at hand, so it costs what is looked at.  It shows what they hold at the
    time of the question; while `runs` is being walked none of them may change.
    """

    __slots__ = ("_intents", "_maps", "block_count")

    def __init__(self, block_count: int, maps: Iterable[DirtyMap], intents: Iterable[IntentSet]) -> None:
        self.block_count = block_count
        self._intents = [each for each in intents if each]
        every = (*maps, *(each._wide for each in self._intents))
        self._maps = sorted((each for each in every if each), key=lambda each: -each.count)

    def __bool__(self) -> bool:
        return bool(self._maps or self._intents)

    def __contains__(self, block: int) -> bool:
        return any(block in each for each in self._maps) or any(block in each for each in self._intents)

    @property
    def count(self) -> int:
        """How many blocks are marked; of the largest map only what others share with it is looked at."""
        maps = self._maps
        few: set[int] = set().union(*(each._few for each in self._intents))
        total = sum(1 for block in few if not any(block in each for each in maps))
        if maps:
            total += maps[0].count
        for number in set[int]().union(*(each._pages for each in maps[1:])):
            there = maps[0]._pages.get(number)
            total += self._page(number, {}).count() - (0 if there is None else there.count())
        return total

    def runs(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """As `DirtyMap.runs`."""
        stop = self.block_count if stop is None else min(stop, self.block_count)
        few = self._few_by_page()
        first = last = start  # of a run that may go on in the next page
        for number in range(start >> PAGE_SHIFT, ((stop - 1) >> PAGE_SHIFT) + 1):
            if not self._has(number, few):
                continue
            base = number << PAGE_SHIFT
            for low, high in _runs_in(self._page(number, few), max(start - base, 0), stop - base):
                if base + low > last:
                    if first < last:
                        yield Extent(first, last)
                    first = base + low
                last = base + high
        if first < last:
            yield Extent(first, last)

    def page_numbers(self) -> Iterable[int]:
        """As `DirtyMap.page_numbers`."""
        intents = (each.page_numbers() for each in self._intents)
        return set[int]().union(*intents, *(each._pages for each in self._maps))

    def page_bytes(self, number: int) -> bytes:
        """As `DirtyMap.page_bytes`."""
        first = number << PAGE_SHIFT
        last = first + PAGE_MASK
        here = {block & PAGE_MASK for each in self._intents for block in each._few if first <= block <= last}
        few = {number: here} if here else {}
        return self._page(number, few).tobytes() if self._has(number, few) else bytes(PAGE_BYTES)

    def describe(self) -> str:
        """As `DirtyMap.describe`."""
        return describe_runs(self.count, self.runs())

    def _few_by_page(self) -> dict[int, set[int]]:
        """The single blocks of the intent sets, as places within their pages."""
        found: dict[int, set[int]] = {}
        for each in self._intents:
            for block in each._few:
                found.setdefault(block >> PAGE_SHIFT, set()).add(block & PAGE_MASK)
        return found

    def _has(self, number: int, few: Mapping[int, set[int]]) -> bool:
        return number in few or any(number in each._pages for each in self._maps)

    def _page(self, number: int, few: Mapping[int, set[int]]) -> bitarray:
        """A page that holds something; not to be changed: it may be one of a map's own."""
        pages = [each._pages[number] for each in self._maps if number in each._pages]
        blocks = few.get(number, ())
        if len(pages) == 1 and not blocks:
            return pages[0]
        union = bitarray(PAGE_BLOCKS, endian="little")
        for page in pages:
            union |= page
        for block in blocks:
            union[block] = 1
        return union


def _runs_in(page: bitarray, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Runs of set bits of a page within the range; ``stop`` may lie behind the page."""
    stop = min(stop, PAGE_BLOCKS)
    low = page.find(1, start, stop)
    while low >= 0:
        high = page.find(0, low, stop)
        if high < 0:
            yield low, stop
            return
        yield low, high
        low = page.find(1, high, stop)
