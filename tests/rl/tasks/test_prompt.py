import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from samepath.rl.tasks.prompt import ChatSettings, PromptRewrite, PromptSettings
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
def test_apply_groups_go_into_the_template(settings, question, text):
    assert PromptRewrite(**settings).apply(question, "here") == text


def test_apply_no_match_names_row_text_and_expression():
    with pytest.raises(TaskError, match=r"rows\.jsonl:3: rewrite\.match '\^a' must match .* 'bcd'"):
        PromptRewrite(match="^a").apply("bcd", "rows.jsonl:3")


@given(st.text())
def test_apply_by_default_keeps_any_question(question):
    assert PromptRewrite().apply(question, "here") == question


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"match": "("}, "match must be a regular expression"),
        ({"match": "(.)", "template": "{2}"}, r"template may hold \{0\}, \{1\}; got \{2\}"),
        ({"template": "{}"}, r"template may hold \{0\}"),
        ({"template": "{0.real}"}, "template may hold"),
        ({"template": "{0:>9}"}, "template may hold"),
        ({"template": "{0!r}"}, "template may hold"),
        ({"template": "{0"}, "must pair its braces"),
        ({"template": "\\boxed{}}"}, "must pair its braces"),
        ({"remove": ("",)}, "remove must hold no empty string"),
        ({"replace": "a"}, "Extra inputs"),
    ],
)
def test_prompt_rewrite_bad_settings_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        PromptRewrite(**settings)


def test_text_of_template_holds_the_rewritten_question():
    settings = PromptSettings(template="Q: {question} \\boxed{{}}", rewrite=PromptRewrite(match="b.*"))
    assert settings.text_of("abc{x}", "here") == "Q: bc{x} \\boxed{}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("no hole", r"template must hold \{question\}"),
        ("{{question}}", r"template must hold \{question\}"),
        ("{question} {answer}", r"got \{answer\}"),
        ("{question!s}", "template may hold"),
    ],
)
def test_prompt_settings_bad_template_is_refused(template, said):
    with pytest.raises(ValidationError, match=said):
        PromptSettings(template=template)


@pytest.mark.parametrize(("question", "said"), [(" \n", "must not be empty"), ("a\ud800", "must be Unicode text")])
def test_text_of_unusable_question_is_refused_with_its_place(question, said):
    with pytest.raises(TaskError, match=f"here: the prompt {said}"):
        PromptSettings().text_of(question, "here")


def test_chat_settings_form_is_none_unless_enabled():
    assert ChatSettings().form is None
    assert ChatSettings(enabled=False, system="s").form is None
    form = ChatSettings(enabled=True, system="s", options={"enable_thinking": False}).form
    assert form is not None
    assert (form.system, form.options) == ("s", {"enable_thinking": False})


@pytest.mark.parametrize("given", [{"system": "s"}, {"options": {"enable_thinking": False}}])
def test_chat_settings_without_enabled_are_refused(given):
    with pytest.raises(ValidationError, match=r"chat\.enabled must be given"):
        ChatSettings(**given)
