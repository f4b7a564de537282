import pytest
from pydantic import ValidationError

from samepath.rl.recipe.prompt import ChatSettings, PromptRewrite, PromptSettings


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
