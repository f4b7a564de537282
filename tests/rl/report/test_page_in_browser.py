"""The page of rollouts in a browser: order, filters, search, a window of rows, and hostile text. Skipped where there is no Chromium."""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from samepath.rl.report.page import write_rollout_report
from samepath.rl.tracking.tracked_rollout import TrackedSegment
from tests.browser import NAMES, Browser, find_browser
from tests.rl.report.test_page import ATTACK, tracked, write
from tests.rl.tracked_conversation import MESSAGES, SEGMENTS, tracked_conversation

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"needs one of {', '.join(NAMES)} on the command path")
STEPS, GROUPS, SAMPLES = 40, 16, 16
TALKS = 3
"""Conversations in the last step."""
OWNED = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A page of 10,240 single answers and three conversations, open."""
    folder = tmp_path_factory.mktemp("run")
    rollouts = []
    for step in range(1, STEPS + 1):
        for group in range(GROUPS):
            for sample in range(SAMPLES):
                changes = {"dataset": "sums" if group % 2 else "words", "gold": str(group), "finish_reason": "stop"}
                if (step, group) == (7, 3):
                    changes |= {
                        "response_text": OWNED + ATTACK,
                        "reward_detail": OWNED,
                        "reward_status": "error",
                        "tokens": (OWNED, "b"),
                    }
                    changes |= {
                        "sampler_logprobs": (-1.0, -2.0),
                        "kl_tokens": (0.1, float("nan")),
                        "prompt_text": OWNED,
                    }
                rollouts.append(tracked(step, group, sample, reward=(sample + step % 3) / 16, **changes))
    marked = {
        0: {"finish_reason": "length"},
        1: {"masked": True},
        2: {"response_text": "a NEEDLE here"},
        3: {"reward": float("nan")},
        4: {
            "response_text": "of two segments",
            "tokens": ("a", "b", "c"),
            "sampler_logprobs": (-1.0, -2.0, -3.0),
            "segment_tokens": (2, 1),
            "ended": "tokens",
        },
    }
    for sample, changes in marked.items():
        place = ((STEPS - 1) * GROUPS + 5) * SAMPLES + sample
        rollouts[place] = tracked(STEPS, 5, sample, dataset="sums", gold="5", **{"reward": 0.25, **changes})
    hostile = tuple({**message, "content": OWNED + ATTACK} for message in MESSAGES)
    long = TrackedSegment(epoch=0, tokens=("a",) * 20_001, kinds="s" * 20_001, calls=())
    drawn = replace(SEGMENTS[1], tokens=(OWNED,) * len(SEGMENTS[1].tokens))
    rollouts += [
        tracked_conversation(step=STEPS, group_id="s40-talk", reward=0.625, dataset="sums", reward_detail="talks"),
        tracked_conversation(
            step=STEPS, group_id="s40-talk", sample_index=1, reward=0.625, dataset="sums", reward_detail="hostile",
            messages=hostile, segments=(SEGMENTS[0], drawn), problems=(OWNED,),
        ),
        tracked_conversation(step=STEPS, group_id="s40-talk", sample_index=2, reward=0.625, dataset="sums",
                             reward_detail="too long", segments=(long,)),
    ]  # fmt: skip
    write(folder, rollouts)
    write_rollout_report(folder / "rollouts", folder / "rollouts.html")
    assert PROGRAM is not None
    with Browser(PROGRAM) as browser:
        browser.open(folder / "rollouts.html")
        yield browser


def shown(page: Browser, **filters: str) -> list[int]:
    """Places in the run of the rollouts that pass the filters, after everything else was reset."""
    page.ask("find('order').value = 'worst'; showAll()")
    for name, value in filters.items():
        page.ask(f"find({json.dumps(name.replace('_', '-'))}).value = {json.dumps(value)}")
    page.ask(
        "for (const id of ['text', 'order']) find(id).dispatchEvent(new Event(id === 'order' ? 'change' : 'input'))"
    )
    return list(page.ask("state.shown"))


def column(page: Browser, name: str, places: list[int]) -> list[object]:
    return list(page.ask(f"{json.dumps(places)}.map(index => columns[{json.dumps(name)}][index])"))


def test_page_begins_with_the_worst_and_has_all(page: Browser) -> None:
    places = shown(page)
    assert sorted(places) == list(range(STEPS * GROUPS * SAMPLES + TALKS))
    assert page.ask("find('count').textContent") == "10,243 of 10,243 rollouts"
    # Without a reward: one of the last step, then the 16 failed ones of step 7; then the lowest reward, latest step first.
    assert column(page, "step", places[:17]) == [STEPS] + [7] * 16
    rewards = [float(str(value)) for value in column(page, "reward", places[17:])]
    assert rewards == sorted(rewards)
    assert column(page, "step", places[17:33]) == [39] * 16
    assert page.ask("document.querySelector('.row[aria-selected=true] .badge').textContent") == "no reward"


@pytest.mark.parametrize(
    ("filters", "number"),
    [
        ({"step_from": "3", "step_to": "4"}, 512),
        ({"step_from": "39"}, 512 + TALKS),
        ({"status": "not ok"}, 17),
        ({"status": "=error"}, 16),
        ({"truncated": "yes"}, 2),
        ({"truncated": "no", "masked": "yes"}, 1),
        ({"text": "needle"}, 1),
        ({"text": "document.title='owned'", "masked": "no"}, 16 + 1),
        ({"text": "no such text"}, 0),
        # Steps 1, 4, … 40 have one such sample a group, steps 2, 5, … 38 two; one of step 7 failed.
        ({"reward_from": "1.0"}, 14 * 16 + 13 * 16 * 2 - 1),
    ],
)
def test_page_filters_show_what_they_say(page: Browser, filters: dict[str, str], number: int) -> None:
    assert len(shown(page, **filters)) == number
    assert page.ask("find('count').textContent") == f"{number:,} of 10,243 rollouts"
    assert (page.ask("find('detail').textContent") == "No rollout passes these filters.") == (number == 0)


def test_page_tasks_are_a_filter(page: Browser) -> None:
    choice = page.ask("[...find('task').options].find(option => option.text === 'words').value")
    places = shown(page, task=choice)
    assert len(places) == STEPS * GROUPS * SAMPLES // 2
    assert page.ask("state.shown.every(index => promptOf(index).dataset === 'words')")


def test_page_best_first_ends_with_failed(page: Browser) -> None:
    places = shown(page, order="best")
    rewards = [float(str(value)) for value in column(page, "reward", places[:-17])]
    assert rewards == sorted(rewards, reverse=True)
    assert page.ask("state.shown.slice(-17).every(failed)")


def test_page_draws_a_window_of_rows_and_keys_move_through_it(page: Browser) -> None:
    shown(page)
    assert 10 < page.ask("document.querySelectorAll('.row').length") < 100
    page.ask("find('list').dispatchEvent(new KeyboardEvent('keydown', {key: 'End'}))")
    assert page.ask("document.querySelector('.row[aria-selected=true]').getAttribute('aria-posinset')") == "10243"
    assert page.ask("document.querySelectorAll('.row').length") < 100
    page.ask("find('list').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowUp'}))")
    assert page.ask("state.chosen") == STEPS * GROUPS * SAMPLES + TALKS - 2
    page.ask("find('list').dispatchEvent(new KeyboardEvent('keydown', {key: 'Home'}))")
    page.ask("find('list').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowDown'}))")
    assert page.ask("state.chosen") == 1


def test_page_group_and_prompt_alone_can_be_shown_and_left(page: Browser) -> None:
    shown(page, text="needle")
    page.ask("[...document.querySelectorAll('.tools button')][0].click(); find('text').value = ''; refresh()")
    assert set(column(page, "group_id", page.ask("state.shown"))) == {"s40-g5"}
    page.ask("[...document.querySelectorAll('.tools button')][1].click()")
    assert page.ask("find('only').textContent") == "only one prompt ✕"
    assert len(page.ask("state.shown")) == STEPS * SAMPLES
    page.ask("find('only').firstChild.click()")
    assert len(page.ask("state.shown")) == STEPS * GROUPS * SAMPLES + TALKS


def test_page_shows_where_the_segments_of_a_conversation_begin(page: Browser) -> None:
    shown(page, text="of two segments")
    page.ask("colour = 'sampler_logprobs'; drawDetail()")
    assert page.ask("document.querySelector('.card pre').textContent") == "segment 1absegment 2c"
    assert page.ask("document.querySelector('.card header').textContent").count("segments 2") == 1
    assert page.ask("document.querySelector('.card header').textContent").count("ended by –, tokens") == 1
    shown(page, text="needle")
    page.ask("colour = ''; drawDetail()")
    assert "segment" not in page.ask("document.querySelector('.card').textContent")


def test_page_shows_a_conversation_message_by_message_and_token_by_token(page: Browser) -> None:
    shown(page, text="talks")
    page.ask("colour = ''; drawDetail()")
    heads = page.ask("[...document.querySelectorAll('.message > div:first-child')].map(node => node.textContent)")
    assert heads == [
        "system", "user", "model · call 0 · 3 tokens · ended by stop · 1 s", "tool · get · 0.25 s", "tool · get · 0.5 s timeout",
        "model · call 1 · 2 tokens · ended by stop · 0.5 s", "user", "model · call 2 · 2 tokens · ended by stop · 0.75 s",
    ]  # fmt: skip
    assert page.ask("[took(0.000145), took(0.01)]") == ["0.145 ms", "0.01 s"]
    said = page.ask("[...document.querySelectorAll('.message')][2].querySelectorAll('pre').length")
    assert said == 3, "reasoning and two calls, no empty content"
    assert page.ask("document.querySelector('.called').textContent") == 'get {"key": "C"}'
    assert page.ask("document.querySelector('.legend').textContent") == "tokenstrainedread againcontentscaffold"
    assert page.ask("[...document.querySelectorAll('.segment')].map(node => node.textContent)") == [
        "segment 1 · epoch 0 · 12 tokens, 5 trained · calls 0, 1",
        "segment 2 · epoch 1 · 11 tokens, 2 trained · calls 2",
    ]
    kinds = page.ask("[...document.querySelectorAll('.context .token')].map(node => node.className.slice(-1)).join('')")
    assert kinds == SEGMENTS[0].kinds + SEGMENTS[1].kinds
    texts = page.ask("[...document.querySelectorAll('.context')].map(node => node.textContent)")
    assert texts == ["".join(segment.tokens) for segment in SEGMENTS]
    backgrounds = page.ask(
        "new Set([...document.querySelectorAll('.context .token')].map(node => getComputedStyle(node).backgroundColor)).size"
    )
    assert backgrounds == 4, "each kind has a colour of its own"
    assert page.ask("find('colour').selectedOptions[0].text") == "who made them"
    assert page.ask("document.querySelector('.card header').textContent").count("problems empty_reasoning") == 1


def test_page_colours_the_drawn_tokens_of_a_conversation_by_their_own_values(page: Browser) -> None:
    shown(page, text="talks")
    page.ask("colour = 'sampler_logprobs'; drawDetail()")
    titles = page.ask("[...document.querySelectorAll('.context .kind-t')].map(node => node.title)")
    assert titles[0] == "trained by call 0, log-probability -0.5 nats"
    assert titles[3:5] == [
        "trained by call 1, log-probability -2 nats",
        "trained by call 1, log-probability -0.5 nats",
    ]
    assert titles[6] == "trained by call 2, log-probability -0.0625 nats"
    painted = "node => node.style.background !== ''"
    assert page.ask(f"[...document.querySelectorAll('.context .kind-t')].every({painted})")
    assert not page.ask(f"[...document.querySelectorAll('.context .kind-s, .context .kind-r')].some({painted})")
    page.ask("colour = ''; drawDetail()")
    assert not page.ask(f"[...document.querySelectorAll('.context .token')].some({painted})")


def test_page_says_where_experts_are_to_be_seen(page: Browser) -> None:
    offered = page.ask("[...find('colour').options].find(one => one.value === 'experts').text")
    assert offered == "experts of a layer (in samepath inspect)"


def test_page_finds_what_is_said_in_conversations_and_says_where_tokens_are_not_here(page: Browser) -> None:
    assert len(shown(page, text="no answer in 0.5 s")) == 2
    shown(page, text="too long")
    assert page.ask("document.querySelectorAll('.message').length") == len(MESSAGES)
    assert "holds no tokens of this conversation" in page.ask("document.querySelector('.card').textContent")


def test_page_shows_hostile_conversations_as_text(page: Browser) -> None:
    shown(page, text="hostile")
    for colour in ("sampler_logprobs", ""):
        page.ask(f"colour = '{colour}'; drawDetail()")
        contents = page.ask(
            "[...document.querySelectorAll('.message pre:not(.reasoning):not(.called)')].map(n => n.textContent)"
        )
        assert contents == [OWNED + ATTACK] * len(MESSAGES)
        assert page.ask("document.querySelectorAll('.context .token')[12].textContent") == OWNED
        assert page.ask("document.querySelectorAll('img').length") == 0
    assert page.ask("document.title").startswith("Rollouts of run")


def test_page_shows_hostile_text_as_text(page: Browser) -> None:
    shown(page, status="=error")
    page.ask("colour = 'kl_tokens'; drawDetail()")
    page.ask("colour = ''; drawDetail()")
    assert OWNED + ATTACK in page.ask("find('detail').textContent")
    assert OWNED in page.ask("document.querySelector('.prompt').textContent")
    assert page.ask("document.title").startswith("Rollouts of run")
    assert page.ask("document.querySelectorAll('img').length") == 0
    # Even markup that did get in would run nothing.
    page.ask("find('held').innerHTML = '<img src=x onerror=\"document.title=1\">'")
    assert page.ask("new Promise(done => setTimeout(() => done(document.title), 50))") is not None
    assert page.ask("document.title").startswith("Rollouts of run")
