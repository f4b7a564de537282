"""What a row becomes: ids for the engine, the question for the reward."""

from collections.abc import Callable, Sequence

from samepath.model.text.chat import ChatForm, ChatTemplate
from samepath.model.text.tokenizer import Tokenizer, character_tokenizer
from samepath.rl.tasks.requests import answered, group_request, train_request
from samepath.rl.tasks.row import Task, TaskError, TaskRow
from samepath.rollout.record import failed_rollouts
from samepath.rollout.request import GroupRequest
from samepath.rollout.sampling_settings import SamplingSettings
from samepath.rollout.types import Group
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
    request = group_request(row(ChatForm(system="7 ")), tokenizer, SamplingSettings(), "g", (1, 2))
    assert isinstance(request, GroupRequest)
    made = request.prompt
    assert made.token_ids == (0, *tokenizer.encode_continuation("7 #1+2="))
    assert made.text == "1+2"


def test_group_request_plain_prompt_of_a_model_with_a_template_is_left_as_it_is() -> None:
    tokenizer = chatty()
    made = group_request(row(None), tokenizer, SamplingSettings(), "g", (1, 2)).prompt
    assert made.token_ids == tokenizer.encode("1+2")


def unencodable() -> TaskRow:
    return TaskRow(row_id="train-7", question="", text="7×3=", dataset="sums", row=7, where="rows.jsonl:8")


def assert_failed(made: GroupRequest | Group, reason: str, detail: str) -> None:
    assert isinstance(made, Group)
    assert [one.failure for one in made.rollouts] == [reason] * 2
    assert all(detail in one.failure_detail for one in made.rollouts)
    assert all(not one.segments and one.score is None for one in made.rollouts)


def test_group_request_row_that_cannot_be_encoded_is_a_failed_group_that_names_its_place() -> None:
    made = group_request(unencodable(), character_tokenizer(ALPHABET), SamplingSettings(), "g", (1, 2))
    assert_failed(
        made, "prompt_not_encodable", "rows.jsonl:8: every character must be in the tokenizer's alphabet; ['×']"
    )
    assert isinstance(made, Group)
    assert (made.group_id, made.prompt.prompt_id, made.prompt.text) == ("g", "train-7", "7×3=")


def test_group_request_chat_row_that_the_form_refuses_is_a_failed_group() -> None:
    """The tokenizer has no template."""
    made = group_request(row(ChatForm(system="")), character_tokenizer(ALPHABET), SamplingSettings(), "g", (1, 2))
    assert_failed(made, "prompt_not_encodable", "train-0: a chat prompt needs the checkpoint's template")


class Unmade(list[TaskRow]):
    """Rows of which the second cannot be made."""

    def __getitem__(self, index: int) -> TaskRow:  # type: ignore[override]
        if index == 1:
            raise TaskError("sums train row 1: no luck")
        return super().__getitem__(index)


def test_train_request_row_that_cannot_be_made_is_a_failed_group_and_the_others_are_asked() -> None:
    task, tokenizer = Task(name="sums", train=Unmade([row(None)] * 3), held_out=[], seed=0), chatty()
    made = [train_request(task, index, tokenizer, SamplingSettings(), f"g{index}", (1, 2)) for index in range(3)]
    failed = [one for one in made if isinstance(one, Group)]
    assert [isinstance(one, GroupRequest) for one in made].count(True) == 2
    (one,) = failed
    assert_failed(one, "row_not_made", "sums train row 1: no luck")


class Refusing:
    """A pool that answers with failures and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def sample(self, requests: Sequence[GroupRequest], on_group: Callable[[Group], None]) -> list[Group]:
        self.asked = [request.group_id for request in requests]
        return [failed_rollouts(request, "aborted") for request in requests]


def test_answered_groups_that_failed_before_stand_in_their_place_and_are_not_sampled() -> None:
    tokenizer, pool = chatty(), Refusing()
    rows = {"a": row(None), "b": unencodable(), "c": row(None)}
    asked = [group_request(one, tokenizer, SamplingSettings(), name, (1,)) for name, one in rows.items()]
    groups = answered(pool, asked, lambda group: None)  # type: ignore[arg-type]
    assert pool.asked == ["a", "c"]
    assert [(group.group_id, group.rollouts[0].failure) for group in groups] == [
        ("a", "aborted"),
        ("b", "prompt_not_encodable"),
        ("c", "aborted"),
    ]
