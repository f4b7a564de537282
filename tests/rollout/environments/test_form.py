"""From settings to the renderer: every one is heard, and what does not belong together is refused."""

import pytest

from samepath.model.text.conversation import Message
from samepath.model.text.encodings.deepseek_v32 import DeepSeekV32Renderer
from samepath.model.text.encodings.template import TemplateRenderer
from samepath.model.text.tokenizer import Tokenizer, character_tokenizer
from samepath.rollout.environments.form import renderer_of
from samepath.rollout.environments.settings import FormSettings
from tests.marked_conversations import GET, marked_tokenizer
from tests.model.text.encodings.test_template import KEEPS, QWEN, SMALL, SWITCHED, tokenizer

MARKED = marked_tokenizer()
BOTH = Tokenizer(MARKED.fast, MARKED.end_token, MARKED.start_token, chat=SMALL.chat)
ASKED = (Message(role="system", content="s"), Message(role="user", content="q"))


def form(**settings: object) -> FormSettings:
    return FormSettings.model_validate(settings)


def test_renderer_of_auto_goes_by_the_control_tokens() -> None:
    assert isinstance(renderer_of(MARKED, form()), DeepSeekV32Renderer)
    assert isinstance(renderer_of(BOTH, form()), DeepSeekV32Renderer)
    assert isinstance(renderer_of(KEEPS, form()), TemplateRenderer)
    assert isinstance(renderer_of(BOTH, form(form="template")), TemplateRenderer)
    assert isinstance(renderer_of(MARKED, form(form="deepseek_v32")), DeepSeekV32Renderer)


@pytest.mark.parametrize("name", ["auto", "deepseek_v32"])
def test_renderer_of_hears_the_settings_of_deepseek_v32(name: str) -> None:
    def text(**settings: object) -> str:
        return MARKED.text(renderer_of(MARKED, form(form=name, **settings)).open(ASKED, (GET,)).ids)

    assert text().endswith("<think>")
    assert text(thinking=False).endswith("</think>")
    assert "s\n\n## Tools" in text()
    assert "\n\ns<" in text(tools_first=True)
    assert renderer_of(MARKED, form(form=name)).reply("p") is None
    assert renderer_of(MARKED, form(form=name, retention="retain_all")).reply("p") is not None


@pytest.mark.parametrize("name", ["auto", "template"])
def test_renderer_of_hears_the_settings_of_a_template(name: str) -> None:
    one = tokenizer(SWITCHED)
    shown = {
        off: one.text(renderer_of(one, form(form=name, options={"off": off})).open(ASKED).ids) for off in (True, False)
    }
    assert shown[True] == shown[False] + "\n</think>\n\n"
    with pytest.raises(ValueError, match=r"chat.options.on must be a variable of the checkpoint's chat template"):
        renderer_of(one, form(form=name, options={"on": True}))


def test_renderer_of_hears_the_parser() -> None:
    hermes = '<tool_call>\n{"name": "get", "arguments": {"key": "C"}}\n</tool_call><|im_end|>'
    dsml = (
        '\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get">\n<｜DSML｜parameter name="key" string="true">C</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls><|im_end|>"
    )
    ends = "r</think>a<|im_end|>"

    def read(text: str, **settings: object) -> list[str]:
        ids = SMALL.encode_continuation(text, [(0, len(text))])
        return [call.name for call in renderer_of(SMALL, form(**settings)).parse(ids).calls]

    assert (read(hermes), read(dsml)) == (["get"], [])
    assert (read(hermes, parser="hermes"), read(dsml, parser="hermes")) == (["get"], [])
    assert read(hermes, parser="tests.rollout.environments.parsers:closed") == ["get"]
    # The end token of this form is another one: text without its own end.
    assert read(dsml, parser="dsml") == ["get"]
    assert read(hermes, parser="dsml") == []
    opens = tokenizer(QWEN.replace("KEEP", "true").replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"))
    ids = opens.encode_continuation(ends, [(0, len(ends))])
    for parser, reasoning in (("hermes", "r"), ("dsml", "r"), ("tests.rollout.environments.parsers:closed", "")):
        assert renderer_of(opens, form(parser=parser)).parse(ids).reasoning == reasoning


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parser": "tests.rollout.environments.nowhere:f"}, "must be an importable `package.module:function`; got"),
        ({"parser": "tests.rollout.environments.parsers:f"}, "has no attribute 'f'"),
        ({"parser": "tests.rollout.environments.parsers:nothing"}, "must take the tokenizer; its signature is"),
        ({"parser": "tests.rollout.environments.parsers:no_parser"}, "got int, which cannot be called"),
        ({"parser": "tests.rollout.environments.parsers:short_parser"}, "must take .ids, tools, ., strict.; its"),
        ({"thinking": False}, "thinking must be left out with form template, which `auto` means here: the tokenizer"),
        ({"retention": "r1"}, "retention must be left out with form template.*or name form: deepseek_v32"),
        ({"tools_first": True}, "tools_first must be left out with form template"),
        ({"form": "deepseek_v32"}, "needs the control tokens"),
    ],
)
def test_renderer_of_refuses_what_does_not_fit_a_template(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        renderer_of(KEEPS, form(**settings))


def test_renderer_of_refuses_what_does_not_fit_the_control_tokens() -> None:
    with pytest.raises(ValueError, match="options must be left out with form deepseek_v32, which `auto` means here"):
        renderer_of(MARKED, form(options={"a": 1}))
    with pytest.raises(
        ValueError, match="is read by parser dsml; got hermes. Leave parser out, or name form: template"
    ):
        renderer_of(MARKED, form(parser="hermes"))
    for one, settings in ((MARKED, {"form": "template"}), (character_tokenizer("01"), {})):
        with pytest.raises(ValueError, match="form template needs the checkpoint's chat template"):
            renderer_of(one, form(**settings))


def test_form_settings_that_belong_to_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match="thinking is a setting of form deepseek_v32; got it with form template"):
        form(form="template", thinking=False)
    with pytest.raises(ValueError, match="options is a setting of form template; got it with form deepseek_v32"):
        form(form="deepseek_v32", options={"a": 1})
    with pytest.raises(ValueError, match="form deepseek_v32 is read by parser dsml; got hermes"):
        form(form="deepseek_v32", parser="hermes")
    # As a run writes its recipe out, with every default.
    for name in ("template", "deepseek_v32", "auto"):
        assert form(**form(form=name).model_dump()) == form(form=name)
