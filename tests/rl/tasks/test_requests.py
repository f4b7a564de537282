"""What a row becomes: ids for the engine, the question for the reward."""

from samepath.model.text.chat import ChatForm, ChatTemplate
from samepath.model.text.tokenizer import Tokenizer, character_tokenizer
from samepath.rl.tasks.requests import group_request
from samepath.rl.tasks.row import TaskRow
from samepath.rollout.sampling_settings import SamplingSettings
from tests.conftest import ALPHABET


def chatty() -> Tokenizer:
    """A character tokenizer whose template puts the system text and `#` before the question and `=` behind it."""
    tokenizer = character_tokenizer(ALPHABET)
    source = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}#{% endif %}{{ m.content }}{% endfor %}="
    return Tokenizer(
        tokenizer.fast, "<eos>", "<bos>", chat=ChatTemplate(source=source, special_tokens={"bos_token": "<bos>"})
    )


def row(chat: ChatForm | None) -> TaskRow:
    return TaskRow(row_id="train-0", question="1 plus 2", text="1+2", dataset="sums", row=0, chat=chat)


def test_group_request_chat_ids_are_of_the_conversation_and_the_text_stays_the_question() -> None:
    tokenizer = chatty()
    made = group_request(row(ChatForm(system="7 ")), tokenizer, SamplingSettings(), "g", (1, 2)).prompt
    assert made.token_ids == (0, *tokenizer.encode_continuation("7 #1+2="))
    assert made.text == "1+2"


def test_group_request_plain_prompt_of_a_model_with_a_template_is_left_as_it_is() -> None:
    tokenizer = chatty()
    made = group_request(row(None), tokenizer, SamplingSettings(), "g", (1, 2)).prompt
    assert made.token_ids == tokenizer.encode("1+2")
