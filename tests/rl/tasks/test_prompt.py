import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.recipe.prompt import PromptRewrite, PromptSettings
from samepath.rl.tasks.prompt import prompt_text, rewritten
from samepath.rl.tasks.row import TaskError


@pytest.mark.parametrize(
    ("settings", "question", "text"),
    [
        ({}, "any  {text}\nat all", "any  {text}\nat all"),
        ({"match": "problem: (.+) =", "template": "{1}=", "remove": (" ",)}, "the problem: 42 - 25 =", "42-25="),
        ({"match": "(?P<a>.)(?P<b>.)", "template": "{b}{a}{0}"}, "xyz", "yxxy"),
        ({"match": "(a)|(b)", "template": "[{1}|{2}]"}, "b", "[|b]"),
        ({"match": "(.+)", "template": "a b {1}{{}}", "remove": (" ", "x")}, "x y", "a b y{}"),
    ],
)
def test_rewritten_groups_go_into_the_template(settings, question, text):
    assert rewritten(PromptRewrite(**settings), question, "here") == text


def test_rewritten_no_match_names_row_text_and_expression():
    with pytest.raises(TaskError, match=r"rows\.jsonl:3: rewrite\.match '\^a' must match .* 'bcd'"):
        rewritten(PromptRewrite(match="^a"), "bcd", "rows.jsonl:3")


@given(st.text())
def test_rewritten_by_default_keeps_any_question(question):
    assert rewritten(PromptRewrite(), question, "here") == question


def test_prompt_text_template_holds_the_rewritten_question():
    settings = PromptSettings(template="Q: {question} \\boxed{{}}", rewrite=PromptRewrite(match="b.*"))
    prompt = prompt_text(settings, "abc{x}", "here")
    assert prompt.text == "Q: bc{x} \\boxed{}"
    assert prompt.written == ((0, 3), (8, 17))


@pytest.mark.parametrize(("question", "said"), [(" \n", "must not be empty"), ("a\ud800", "must be Unicode text")])
def test_prompt_text_unusable_question_is_refused_with_its_place(question, said):
    with pytest.raises(TaskError, match=f"here: the prompt {said}"):
        prompt_text(PromptSettings(), question, "here")
