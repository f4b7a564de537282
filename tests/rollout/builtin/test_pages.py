"""Cache pages: references are kept right, and a found prefix always holds exactly the tokens that were asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samepath.rollout.builtin.pages import OutOfPagesError, PagePool


def test_take_gives_each_page_once_and_never_the_scratch_page() -> None:
    pool = PagePool(5, 4)
    pages = pool.take(5)
    assert sorted(pages) == [1, 2, 3, 4, 5]
    assert pool.available == 0


def test_take_more_than_available_is_refused_and_takes_nothing() -> None:
    pool = PagePool(3, 4)
    pool.take(1)
    with pytest.raises(OutOfPagesError, match="3 pages wanted, 2 of 3 available"):
        pool.take(3)
    assert pool.available == 2


def test_release_shared_page_is_free_only_after_the_last_user() -> None:
    pool = PagePool(2, 4)
    pages = pool.take(1)
    pool.share(pages)
    pool.release(pages)
    assert pool.available == 1
    pool.release(pages)
    assert pool.available == 2


def test_slots_are_the_pages_tokens_in_order() -> None:
    assert PagePool(5, 3).slots([4, 1]).tolist() == [12, 13, 14, 3, 4, 5]


def test_find_prefix_returns_full_pages_but_leaves_the_last_token_to_be_run() -> None:
    pool = PagePool(8, 2)
    tokens = [7, 8, 9, 7, 5]
    pages = pool.take(3)
    pool.publish(tokens, pages)
    assert pool.find_prefix(tokens) == pages[:2]
    assert pool.find_prefix([7, 8, 9, 7]) == pages[:1]
    assert pool.find_prefix([7, 8, 9, 8, 1]) == pages[:1]
    assert pool.find_prefix([8, 7, 9, 7, 1]) == []
    assert pool.find_prefix([7, 8]) == []


def test_find_prefix_keeps_idle_pages_until_the_space_is_needed() -> None:
    pool = PagePool(3, 2)
    tokens = [1, 2, 3, 4, 5]
    pages = pool.take(2)
    pool.publish(tokens, pages)
    pool.release(pages)
    assert pool.available == 3
    assert pool.find_prefix(tokens) == pages
    pool.take(2)
    # The end of a prefix is useless without its beginning, so it goes first.
    assert pool.find_prefix(tokens) == pages[:1]


def test_find_prefix_after_the_beginning_was_replaced_never_continues_into_the_old_end() -> None:
    """A private copy of a known page keeps the end alive while the beginning is evicted and its page number taken over."""
    pool = PagePool(4, 1)
    first = pool.take(1)
    pool.publish([1], first)
    second = pool.take(2)
    pool.publish([1, 2], second)
    pool.release(first)
    taken = pool.take(2)
    assert first[0] in taken
    pool.publish([9], first)
    assert pool.find_prefix([9, 2, 3]) == first
    assert pool.find_prefix([1, 2, 3]) == []


def test_publish_known_content_stays_private_but_what_follows_it_is_found() -> None:
    pool = PagePool(6, 1)
    first, second = pool.take(1), pool.take(2)
    pool.publish([4], first)
    pool.publish([4, 5], second)
    assert pool.find_prefix([4, 5, 6]) == [first[0], second[1]]
    pool.release(second)
    assert pool.find_prefix([4, 5, 6]) == [first[0], second[1]]


def test_publish_again_behind_a_replaced_beginning_leaves_nothing_that_leads_to_a_page_of_other_content() -> None:
    """A page that followed another's copy of its beginning is published again, as a sequence grows, once that copy is evicted."""
    pool = PagePool(4, 1)
    first, own = pool.take(1), pool.take(2)
    pool.publish([1], first)
    pool.publish([1, 2], own)
    pool.release(first)
    other = pool.take(2)
    assert first[0] in other
    pool.publish([1, 2], own)
    assert pool.find_prefix([1, 2, 9]) == own
    pool.release(own)
    assert pool.take(1) == own[1:]
    assert pool.find_prefix([1, 2, 9]) == own[:1]


def test_forget_all_frees_idle_pages_and_leaves_used_ones_with_their_users() -> None:
    pool = PagePool(4, 1)
    used, idle = pool.take(1), pool.take(1)
    pool.publish([1], used)
    pool.publish([2], idle)
    pool.release(idle)
    pool.forget_all()
    assert pool.find_prefix([1, 9]) == pool.find_prefix([2, 9]) == []
    assert pool.available == 3
    pool.release(used)
    assert pool.available == 4
    assert sorted(pool.take(4)) == [1, 2, 3, 4]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    page_size=st.integers(1, 3),
    actions=st.lists(
        st.one_of(
            st.lists(st.integers(0, 1), min_size=1, max_size=9),
            st.integers(0, 5),
            st.just("forget"),
        ),
        max_size=60,
    ),
)
def test_pool_wild_use_never_mixes_contents_and_loses_no_page(page_size: int, actions: list[object]) -> None:
    """Prompts come and go; each page's true content is kept beside the pool and compared whenever a prefix is found."""
    pool = PagePool(8, page_size)
    content: dict[int, tuple[int, ...]] = {}
    held: list[list[int]] = []
    written: list[tuple[list[int], list[int]]] = []
    for action in actions:
        if action == "forget":
            pool.forget_all()
        elif isinstance(action, int):
            if held:
                # At its end a sequence is published again.
                pool.publish(*written.pop(action % len(held)))
                pool.release(held.pop(action % len(held)))
        elif isinstance(action, list):
            prefix = pool.find_prefix(action)
            for number, page in enumerate(prefix, 1):
                assert content[page] == tuple(action[: number * page_size])
            pool.share(prefix)
            wanted = -(-len(action) // page_size) - len(prefix)
            if wanted > pool.available:
                pool.release(prefix)
                continue
            fresh = pool.take(wanted)
            in_use = {page for pages in held for page in pages} | set(prefix)
            assert not in_use & set(fresh)
            pages = prefix + fresh
            for number, page in enumerate(pages, 1):
                content[page] = tuple(action[: number * page_size])
            pool.publish(action[: len(action) // 2], pages)
            pool.publish(action, pages)
            held.append(pages)
            written.append((action, pages))
        assert pool.available == 8 - len({page for pages in held for page in pages})
    for pages in held:
        pool.release(pages)
    assert sorted(pool.take(8)) == list(range(1, 9))
    assert np.array_equal(pool.slots([1]), np.arange(page_size) + page_size)
