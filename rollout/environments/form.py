"""The renderer that a recipe's form of conversations names, for the tokenizer of its model."""

import importlib
import inspect
from collections.abc import Mapping

from samepath.model.text.encodings.deepseek_v32 import DeepSeekV32Renderer
from samepath.model.text.encodings.dsml_parser import DsmlParser
from samepath.model.text.encodings.dsml_text import END, MARKS
from samepath.model.text.encodings.hermes_parser import HermesParser
from samepath.model.text.encodings.template import Parser, TemplateRenderer, prompt_of
from samepath.model.text.renderer import Renderer
from samepath.model.text.tokenizer import Tokenizer
from samepath.rollout.environments.settings import FORM_OF_SETTING, FormSettings


def renderer_of(tokenizer: Tokenizer, form: FormSettings) -> Renderer:
    """The renderer. Raises ValueError where the tokenizer or a setting does not belong to the form, or the parser cannot be used."""
    names = {tokenizer.text([id_]) for id_ in tokenizer.control_ids}
    published = tokenizer.end_token == END and names.issuperset(MARKS)
    if form.form == "deepseek_v32" or (form.form == "auto" and published):
        _check_settings(form, "deepseek_v32", f"the tokenizer has the control tokens {', '.join(MARKS)}")
        if form.parser not in ("auto", "dsml"):
            raise ValueError(
                f"form deepseek_v32, which this tokenizer's control tokens mean, is read by parser dsml; got {form.parser}. "
                "Leave parser out, or name form: template."
            )
        return DeepSeekV32Renderer(
            tokenizer, thinking=form.thinking, retention=form.retention, tools_first=form.tools_first
        )
    _check_settings(form, "template", f"the tokenizer lacks one of the control tokens {', '.join(MARKS)}")
    if tokenizer.chat is None:
        raise ValueError(
            "form template needs the checkpoint's chat template (chat_template.jinja, or chat_template in tokenizer_config.json); it has "
            "none. Put one beside the tokenizer, or take a checkpoint tuned for conversations."
        )
    return TemplateRenderer(tokenizer, options=form.options, parser=_parser(tokenizer, form))


def _check_settings(form: FormSettings, chosen: str, reason: str) -> None:
    """Raise ValueError if form `auto` is to be `chosen` and a setting of the other form says anything."""
    # Not model_fields_set: a recipe that a run has written out holds every default.
    foreign = [
        name
        for name, owner in FORM_OF_SETTING.items()
        if owner != chosen and getattr(form, name) != FormSettings.model_fields[name].default
    ]
    if foreign:
        raise ValueError(
            f"{', '.join(foreign)} must be left out with form {chosen}, which `auto` means here: {reason}. "
            f"Leave out, or name form: {FORM_OF_SETTING[foreign[0]]}."
        )


def _parser(tokenizer: Tokenizer, form: FormSettings) -> Parser:
    """What reads the messages of a template."""
    if form.parser not in ("auto", "dsml", "hermes"):
        return _foreign_parser(form.parser, tokenizer)
    assert tokenizer.chat is not None
    opening = prompt_of(tokenizer.chat, form.options)[1]
    if form.parser == "dsml":
        # A prompt that opens no reasoning is answered without.
        return DsmlParser(tokenizer, thinking=opening == "open")
    return HermesParser(tokenizer, opening=opening)


def _foreign_parser(path: str, tokenizer: Tokenizer) -> Parser:
    """What the function at an import path makes of the tokenizer."""
    module_name, _, name = path.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"form.parser must be an importable `package.module:function`; got {path!r}: {error}"
        ) from error
    _check_call(make, (tokenizer,), {}, f"form.parser: {path} must take the tokenizer")
    parser: Parser = make(tokenizer)
    _check_call(
        parser, ((), ()), {"strict": True}, f"form.parser: what {path} returns must take (ids, tools, *, strict)"
    )
    return parser


def _check_call(target: object, positional: tuple[object, ...], named: Mapping[str, object], wanted: str) -> None:
    """Raise ValueError if the target cannot be called so."""
    if not callable(target):
        raise ValueError(f"{wanted}; got {type(target).__name__}, which cannot be called")
    try:
        inspect.signature(target).bind(*positional, **named)
    except TypeError as error:
        raise ValueError(f"{wanted}; its signature is {inspect.signature(target)}: {error}") from error
