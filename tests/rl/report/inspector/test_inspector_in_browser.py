"""The inspector in a browser: list, filters, keys, links, groups, colours, a run that goes on, hostile text. Skipped where there is no Chromium."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samepath.rl.report.inspector.server import InspectorServer
from samepath.rl.tracking.token_columns import CHOICES, routes
from tests.browser import NAMES, Browser, find_browser
from tests.conversations import drawn_call
from tests.rl.report.inspector.made_run import some_rollouts, tracked, write, write_run
from tests.rl.sampled import rollout
from tests.rl.tracked_conversation import MESSAGES, tracked_conversation

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"needs one of {', '.join(NAMES)} on the command path")
OWNED = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
STEPS, GROUPS, SAMPLES = 6, 10, 8
TOTAL = STEPS * GROUPS * SAMPLES + 6


def kept_routes() -> Any:
    """Three tokens, two layers; of the second token the live router takes another expert in the second layer."""
    call = drawn_call([2], [4, 5, 6])
    chosen_TLX = np.array([[[0, 1], [2, 3]], [[1, 2], [3, 0]], [[2, 3], [0, 1]], [[-1, -1], [-1, -1]]], np.int16)
    segments = (call.__class__(**{**{name: getattr(call, name) for name in call.__slots__}, "routes": chosen_TLX}),)
    return routes(rollout("a", 0, 1.0, segments=segments), (1, 2), np.array([[1, 1, 0, 2]]))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    coloured = {
        "tokens": ("one ", OWNED, "three"), "response_text": "one two three", "sampler_logprobs": (-0.5, -1.0, -4.0), "log_ratios": (0.25, -0.5, float("nan")),
        "entropies": (0.1, 0.2, 0.4), "kl_tokens": (0.0, 0.5, 1.0), "roles": "tmo", "support_sizes": (1, 20, 0), "weight_versions": ((3, 2), (4, 1)),
        "routes": kept_routes(), "segment_tokens": (3,), "num_tokens": 3,
    }  # fmt: skip
    special = [
        tracked(STEPS, 50, 0, reward=2.0, advantage=0.5, reward_detail="coloured", **coloured),
        tracked(
            STEPS,
            50,
            1,
            reward=1.0,
            advantage=-0.5,
            masked=True,
            off_policy=0.08,
            route_flips=0.01,
            response_text=OWNED,
            prompt_text="prompt 50",
        ),
        tracked(
            STEPS, 50, 2, reward=1.5, advantage=0.0, off_policy=0.09, gold=OWNED, reward_detail=OWNED, dataset=OWNED
        ),
        tracked_conversation(step=STEPS, group_id="talk", reward=3.0, masked=True, advantage=-1.0, off_policy=0.2),
        tracked(STEPS, 51, 0, response_text="before\nsame words", reward=5.0, prompt_text="asked twice"),
        tracked(1, 51, 0, response_text="after\nsame words", reward=5.0, prompt_text="asked twice"),
    ]
    rollouts = [*some_rollouts(STEPS, GROUPS, SAMPLES), *special]
    return write_run(tmp_path_factory.mktemp("runs") / "shown", rollouts, phase="training")


@pytest.fixture(scope="module")
def server(run_dir: Path) -> Iterator[InspectorServer]:
    with InspectorServer(run_dir) as server:
        server.index.refresh()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: InspectorServer) -> Browser:
    """The page, open at its beginning."""
    return at(browser, server)


def at(browser: Browser, server: InspectorServer, link: str = "") -> Browser:
    browser.visit(server.url + (f"#{link}" if link else ""))
    browser.wait(
        "state.run !== null && document.querySelectorAll('.row').length > 1 && find('detail').childNodes.length > 0"
    )
    return browser


def chosen(page: Browser) -> str:
    return str(page.ask("state.at"))


def set_to(page: Browser, **values: str) -> None:
    """Set fields and wait for the list."""
    before = page.ask("state.turn")
    for name, value in values.items():
        kind = "input" if name.endswith(("text", "_from", "_to")) else "change"
        field = re.sub("_(from|to)$", r"-\1", name)
        page.ask(
            f"find({json.dumps(field)}).value = {json.dumps(value)}; find({json.dumps(field)}).dispatchEvent(new Event('{kind}'))"
        )
    page.wait(
        f"state.turn > {before} && state.asked !== null && JSON.stringify(state.asked) === JSON.stringify(filters())"
    )
    page.wait("state.found === 0 || state.lines.size > 0")


def detail(page: Browser) -> str:
    return str(page.ask("find('detail').textContent"))


def test_page_begins_with_the_worst_and_says_how_the_run_stands(page: Browser) -> None:
    assert page.ask("document.title") == "Rollouts of shown"
    assert page.ask("find('count').textContent") == f"{TOTAL} of {TOTAL} rollouts"
    assert page.ask("find('run').textContent") == f"ended early (training) · {TOTAL} rollouts of {STEPS} steps"
    assert "timeout" in page.ask("document.querySelector('#list .row').textContent")
    assert 10 < page.ask("document.querySelectorAll('#list .row').length") < 100
    assert page.ask("find('curve').querySelector('path').getAttribute('d').length") > 20
    assert page.ask("find('problem').textContent") == ""


@pytest.mark.parametrize(
    ("fields", "passes"),
    [
        ({"step_from": "2", "step_to": "3"}, lambda one: 2 <= one.step <= 3),
        ({"reward_from": "1"}, lambda one: not one.failed and one.reward >= 1),
        ({"status": "not ok"}, lambda one: one.failed),
        ({"status": "=timeout"}, lambda one: one.reward_status == "timeout"),
        ({"masked": "yes", "kl_to": "0.05"}, lambda one: one.masked and one.kl <= 0.05),
        ({"task": "=Words", "truncated": "yes"}, lambda one: one.dataset == "Words" and one.finish_reason == "length"),
        ({"text": "needle", "num_tokens_from": "1"}, lambda one: "NEEDLE" in one.response_text and one.num_tokens >= 1),
        ({"off_policy_from": "0.1"}, lambda one: one.off_policy >= 0.1),
        ({"text": "no such text"}, lambda one: False),
    ],
)  # fmt: skip
def test_page_filters_show_what_they_say(page: Browser, fields: dict[str, str], passes: Any) -> None:
    special = {"reward_from": 5 + 1, "off_policy_from": 1, "step_from": 0}
    set_to(page, **fields)
    wanted = sum(passes(one) for one in some_rollouts(STEPS, GROUPS, SAMPLES))
    wanted += special.get(next(iter(fields)), 0)
    assert page.ask("state.found") == wanted
    assert page.ask("find('count').textContent") == f"{wanted} of {TOTAL} rollouts"
    if not wanted:
        assert detail(page) == "No rollout passes these filters."


def test_page_orders_by_a_columns_head(page: Browser) -> None:
    page.ask("[...document.querySelectorAll('#columns button')].find(one => one.textContent === 'reward').click()")
    page.wait("state.asked.order === 'reward'")
    assert page.ask("[...Array(6).keys()].map(place => state.lines.get(place).reward)") == [5, 5, 3, 2, 1.5, 1.25]
    page.ask("[...document.querySelectorAll('#columns button')].find(one => one.textContent === 'reward ↓').click()")
    page.wait("state.asked.down === undefined")
    assert page.ask("state.lines.get(0).reward") == 0
    assert page.ask("document.querySelector('#columns button[aria-pressed=true]').textContent") == "reward ↑"


def test_page_keys_move_open_and_go_back(page: Browser) -> None:
    first = chosen(page)
    page.press("j")
    page.wait(f"state.at !== {json.dumps(first)}")
    page.wait("state.one && `${state.one.step}/${state.one.sample_index}/${state.one.group_id}` === state.at")
    second = chosen(page)
    page.press("k")
    page.wait(f"state.at === {json.dumps(first)}")
    page.press("j")
    page.wait(f"state.at === {json.dumps(second)}")
    page.press("Enter")
    page.wait("find('main').className === 'wide'")
    assert f"sample {second.split('/')[1]}" in detail(page)
    page.press("g")
    page.wait("document.querySelectorAll('.group .card').length === 8")
    assert (
        page.ask("document.querySelector('.group [aria-selected=true] header span').textContent")
        == f"sample {second.split('/')[1]}"
    )
    page.press("Escape")
    page.wait("find('main').className === ''")
    assert chosen(page) == second
    page.press("End")
    page.wait(f"state.chosen === {TOTAL - 1} && state.at !== {json.dumps(second)}")
    assert page.ask("document.querySelector('#list .row[aria-selected=true]').getAttribute('aria-posinset')") == str(
        TOTAL
    )
    page.press("/")
    page.wait("document.activeElement.id === 'text'")
    page.press("k")
    page.press("Escape")
    assert page.ask("document.activeElement.id") == "list"
    assert page.ask("state.chosen") == TOTAL - 1, "what is typed moves nothing"


def test_page_scrolled_far_shows_the_lines_there(page: Browser) -> None:
    page.ask("find('list').scrollTop = 30 * 250")
    page.wait(
        "[...document.querySelectorAll('#list .row')].some(row => row.id === 'row-255' && !row.classList.contains('waits'))"
    )
    shown = page.ask(
        "[...document.querySelectorAll('#list .row')].find(row => row.id === 'row-255').querySelector('.step').textContent"
    )
    assert shown == str(page.ask("state.lines.get(255).step"))


def test_page_address_is_a_link_to_what_is_shown(browser: Browser, server: InspectorServer) -> None:
    page = at(browser, server, "reward=1..&task=sums&order=kl&down=yes&at=2%2F1%2Fs2-g3&view=group&colour=entropies")
    page.wait("document.querySelectorAll('.group .card').length === 8")
    assert page.ask("[find('reward-from').value, find('task').value, find('order').value, colour]") == [
        "1",
        "=sums",
        "kl",
        "entropies",
    ]
    assert page.ask("document.querySelector('.group [aria-selected=true] header span').textContent") == "sample 1"
    page.press("j")
    page.press("Enter")
    page.wait("state.one && state.one.sample_index === 2 && state.view === 'rollout'")
    link = page.ask("location.hash")
    assert "at=2%2F2%2Fs2-g3" in link
    before = detail(page)
    at(browser, server, link[1:])
    assert detail(page) == before


def test_page_back_goes_to_the_view_before(page: Browser) -> None:
    page.press("Enter")
    page.wait("state.view === 'rollout' && location.hash.includes('view=rollout')")
    page.ask("history.back()")
    page.wait("state.view === 'list' && find('main').className === ''")


def colours(page: Browser) -> list[str]:
    return list(
        page.ask("[...document.querySelectorAll('#detail .card pre .token')].map(node => node.style.background)")
    )


def test_page_colours_tokens_by_everything_that_is_stored(browser: Browser, server: InspectorServer) -> None:
    page = at(browser, server, f"at={STEPS}%2F0%2Fs{STEPS}-g50&view=rollout")
    assert page.ask("document.querySelectorAll('#detail .card pre .token').length") == 0
    offered = page.ask("[...find('colour').options].filter(one => !one.disabled).map(one => one.value)")
    assert offered == [
        "",
        "log_ratios",
        "sampler_logprobs",
        "entropies",
        "kl_tokens",
        "roles",
        "weight_versions",
        "support_sizes",
        "experts",
    ]
    seen = {}
    for name in offered[1:]:
        page.press("c")
        page.wait(f"colour === '{name}'")
        seen[name] = colours(page)
        assert len(seen[name]) == 3
        assert page.ask("document.querySelector('.legend').textContent.length") > 10
    assert seen["log_ratios"][2] == "", "no number, no colour"
    assert (
        len(set(seen["log_ratios"]))
        == len(set(seen["roles"]))
        == len(set(seen["support_sizes"]))
        == len(set(seen["entropies"]))
        == 3
    )
    assert seen["weight_versions"][0] == seen["weight_versions"][1] != seen["weight_versions"][2]
    told = page.ask("[...document.querySelectorAll('#detail .card pre .token')].map(node => node.title)")
    assert told[1] == (
        "log-probability -1 nats, KL 0.5 nats, log-ratio -0.5 nats, entropy 0.2 nats, support 20 tokens, weights 3, masked, layer 1: experts 1, 2"
    )
    assert "flipped" not in page.ask(
        "[...document.querySelectorAll('#detail .card pre .token')].map(node => node.className).join()"
    )
    page.ask("find('layer').value = '1'; find('layer').dispatchEvent(new Event('change'))")
    assert page.ask("[...find('layer').options].map(one => one.text)") == ["1", "2, 1 flips"]
    assert page.ask(
        "[...document.querySelectorAll('#detail .card pre .token')].map(node => node.classList.contains('flipped'))"
    ) == [False, True, False]
    assert "layer 2: experts 3, 0, the live router takes 0, 2" in page.ask(
        "document.querySelectorAll('#detail .card pre .token')[1].title"
    )
    assert "layer=1" in page.ask("location.hash")
    other = at(browser, server, f"at={STEPS}%2F1%2Fs{STEPS}-g50&view=rollout&colour=experts")
    assert "holds no values for the tokens" in detail(other)


@pytest.mark.parametrize(
    ("sample", "said"),
    [(1, f"not stored: kept up to {CHOICES} a token over all layers"), (2, "not stored")],
    ids=["of a mixture", "of a dense model"],
)
def test_page_says_why_experts_are_not_stored(
    browser: Browser, server: InspectorServer, sample: int, said: str
) -> None:
    page = at(browser, server, f"at={STEPS}%2F{sample}%2Fs{STEPS}-g50&view=rollout")
    offered = page.ask("[...find('colour').options].find(one => one.value === 'experts').text")
    assert offered == f"experts of a layer ({said})"


def test_page_shows_why_the_mask_decided_as_it_did(browser: Browser, server: InspectorServer) -> None:
    page = at(browser, server, f"at={STEPS}%2F1%2Fs{STEPS}-g50")
    assert page.ask("document.querySelector('.mask').textContent") == (
        "mean log(π_sampler/π) 0.08 nats a token, δ = 0.05: advantage below 0 and the mean above δ: masked"
    )
    assert page.ask(
        "parseFloat(document.querySelector('.gauge .fill').style.width) > parseFloat(document.querySelector('.gauge .tick').style.left)"
    )
    page = at(browser, server, f"at={STEPS}%2F2%2Fs{STEPS}-g50")
    assert page.ask("document.querySelector('.mask').textContent").endswith(
        "above δ, but the advantage is not below 0: kept"
    )


def test_page_group_stands_side_by_side_with_its_advantages(browser: Browser, server: InspectorServer) -> None:
    page = at(browser, server, f"at={STEPS}%2F0%2Fs{STEPS}-g50&view=group")
    assert page.ask("document.querySelectorAll('.group .card').length") == 3
    assert page.ask(
        "[...document.querySelectorAll('.advantage span')].map(bar => bar.className + bar.style.width)"
    ) == ["plus50%", "minus50%", "plus0%"]
    assert "3 samples · mean reward 1.5, 1 to 2" in detail(page)
    page.ask("document.querySelectorAll('.group .card')[1].click()")
    page.wait("state.view === 'rollout' && state.one && state.one.sample_index === 1")


def test_page_shows_a_conversation_with_messages_and_segments(browser: Browser, server: InspectorServer) -> None:
    page = at(browser, server, f"at={STEPS}%2F0%2Ftalk&view=rollout")
    assert page.ask("document.querySelectorAll('.message').length") == len(MESSAGES)
    assert (
        page.ask("[...document.querySelectorAll('.context .token')].map(node => node.className.slice(-1)).join('')")
        == "sccstttscsttsccsrrscstt"
    )


def test_page_shows_how_the_best_answer_changed(browser: Browser, server: InspectorServer) -> None:
    page = at(browser, server, f"at={STEPS}%2F0%2Fs{STEPS}-g51")
    page.ask("[...document.querySelectorAll('#detail button')].pop().click()")
    page.wait("document.querySelector('ins') !== null")
    assert page.ask("[document.querySelector('del').textContent, document.querySelector('ins').textContent]") == [
        "after",
        "before",
    ]


def test_page_group_alone_can_be_shown_and_left(browser: Browser, server: InspectorServer) -> None:
    page = at(browser, server, f"at={STEPS}%2F0%2Fs{STEPS}-g50")
    page.ask("[...document.querySelectorAll('.tools button')][1].click()")
    page.wait("state.found === 3")
    page.ask("find('only').firstChild.click()")
    page.wait(f"state.found === {TOTAL}")


def test_page_shows_hostile_text_as_text(browser: Browser, server: InspectorServer) -> None:
    for link, shown in (
        (f"at={STEPS}%2F0%2Fs{STEPS}-g50&colour=log_ratios", "#detail .card pre"),
        (f"at={STEPS}%2F1%2Fs{STEPS}-g50", "#detail .card pre"),
        (f"at={STEPS}%2F2%2Fs{STEPS}-g50&text=onerror", "#detail .card .bad:last-child"),
        (f"at={STEPS}%2F2%2Fs{STEPS}-g50&view=group", ".group .card:nth-child(2) pre"),
    ):
        page = at(browser, server, link)
        assert OWNED in page.ask(f"document.querySelector({json.dumps(shown)}).textContent")
        assert page.ask("document.querySelectorAll('img').length") == 0
        assert page.ask("document.title") == "Rollouts of shown"
    assert OWNED in page.ask("[...find('task').options].map(one => one.text)")
    page.ask("find('run').innerHTML = '<img src=x onerror=\"document.title=1\">'")
    page.ask("new Promise(done => setTimeout(() => done(1), 50))")
    assert page.ask("document.title") == "Rollouts of shown"


def test_page_asks_only_its_own_server(page: Browser, server: InspectorServer) -> None:
    asked = page.ask("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert len(asked) > 6
    assert [name for name in asked if not name.startswith(server.url)] == []


def test_page_says_what_a_link_cannot_show(browser: Browser, server: InspectorServer) -> None:
    browser.visit(server.url + "#at=3%2F0%2Fnowhere")
    browser.wait("find('problem').textContent !== ''")
    assert browser.ask("find('problem').textContent") == "there is no sample 0 of group 'nowhere' in step 3"
    browser.visit(server.url + "#reward=much")
    browser.wait("find('list') && state.found > 0")


def test_page_of_a_run_that_goes_on_takes_its_new_steps_and_stays_where_it_is(
    browser: Browser, server: InspectorServer, run_dir: Path
) -> None:
    """The last test: the run has one more step behind it."""
    page = at(browser, server, "at=2%2F1%2Fs2-g3&order=step")
    before = page.ask("state.chosen")
    page.ask("find('detail').firstChild.dataset.kept = 'yes'")
    write(run_dir, [tracked(0, 0, 0), tracked(STEPS + 1, 0, 0)])
    page.wait(f"state.total === {TOTAL + 2}")
    page.wait(f"state.chosen === {before + 1}")
    assert chosen(page) == "2/1/s2-g3"
    asked = "performance.getEntriesByType('resource').filter(entry => entry.name.includes('/api/{}?')).length"
    seen = page.ask(asked.format("run"))
    page.wait(f"{asked.format('run')} > {seen}")
    assert page.ask(asked.format("rollout")) == 1, "what is looked at is not asked for again"
    assert page.ask("find('detail').firstChild.dataset.kept") == "yes"
    assert page.ask("find('run').textContent").endswith(f"{TOTAL + 2} rollouts of {STEPS + 2} steps")
