"""Pages of the key cache: a page holds `page_size` slots, is shared by reference count, and full pages are found again by content."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROOT = 0
"""Serial number before the first page of any sequence."""

PageKey = tuple[int, tuple[int, ...]]
"""(serial of the entry before, token ids of the page). Serials are never used twice, so an entry whose predecessor was evicted can
never be found behind other content that happens to stand in the same page."""


class OutOfPagesError(RuntimeError):
    """No page is free and none can be evicted."""


class PagePool:
    """Hands out pages 1 … num_pages (page 0 is the scratch page) and keeps published pages until the space is needed."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._free = list(range(num_pages, 0, -1))
        self._references = [0] * (num_pages + 1)
        self._cached: dict[PageKey, int] = {}
        self._key_of: dict[int, PageKey] = {}
        self._serial_of: dict[int, int] = {}
        self._last_serial = ROOT
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Pages that can be taken now: free ones and cached ones nobody uses."""
        return len(self._free) + len(self._idle)

    def used(self, pages: Sequence[int]) -> int:
        """How many of the pages somebody holds."""
        return sum(self._references[page] > 0 for page in pages)

    def take(self, count: int) -> list[int]:
        """Take `count` pages with one reference each; evicts the least recently used cached pages. Raises OutOfPagesError."""
        if count > self.available:
            raise OutOfPagesError(f"{count} pages wanted, {self.available} of {self.num_pages} available")
        pages = []
        for _ in range(count):
            if not self._free:
                evicted, _ = self._idle.popitem(last=False)
                self._forget(evicted)
                self._free.append(evicted)
            page = self._free.pop()
            self._references[page] = 1
            pages.append(page)
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Add one reference to each page."""
        for page in pages:
            self._references[page] += 1
            self._idle.pop(page, None)

    def release(self, pages: Sequence[int]) -> None:
        """Drop one reference of each; an unused page is freed, or stays findable if its content is cached."""
        # Last page first: what follows a page is then evicted before it.
        for page in reversed(pages):
            self._references[page] -= 1
            if self._references[page] == 0:
                if page in self._key_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def find_prefix(self, token_ids: Sequence[int]) -> list[int]:
        """Pages of the longest cached run of full pages of `token_ids`; the last token is left out, it must be run for its logits."""
        pages: list[int] = []
        parent = ROOT
        for start in range(0, len(token_ids) - self.page_size, self.page_size):
            page = self._cached.get((parent, tuple(token_ids[start : start + self.page_size])))
            if page is None:
                break
            pages.append(page)
            parent = self._serial_of[page]
        return pages

    def publish(self, token_ids: Sequence[int], pages: Sequence[int]) -> None:
        """Make the full pages of a sequence findable; a page whose content is known under another number stays private."""
        parent = ROOT
        for number, page in enumerate(pages[: len(token_ids) // self.page_size]):
            key = (parent, tuple(token_ids[number * self.page_size : (number + 1) * self.page_size]))
            known = self._cached.setdefault(key, page)
            before = self._key_of.get(page)
            if known == page and before is None:
                self._last_serial += 1
                self._serial_of[page] = self._last_serial
            if known == page and before != key:
                # It followed another page of the same content, which was evicted since: nothing leads to it under that key any more.
                if before is not None:
                    del self._cached[before]
                self._key_of[page] = key
            parent = self._serial_of[known]

    def forget_all(self) -> None:
        """Drop every cached prefix (its keys were made by older weights). Pages in use stay with their users."""
        for page in list(self._key_of):
            self._forget(page)
        self._free.extend(self._idle)
        self._idle.clear()

    def _forget(self, page: int) -> None:
        del self._cached[self._key_of.pop(page)], self._serial_of[page]

    def slots(self, pages: Sequence[int]) -> NDArray[np.int64]:
        """Slot numbers of the pages' tokens, in order."""
        return (np.asarray(pages, np.int64)[:, None] * self.page_size + np.arange(self.page_size)).ravel()
