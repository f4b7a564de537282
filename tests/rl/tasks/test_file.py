import datetime
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samepath.rl.recipe.task import FileTask
from samepath.rl.tasks.row import TaskError, canonical_text
from samepath.rl.tasks.tasks import build_task

ROWS = [{"question": f"What is {i} + 1?", "answer": i + 1, "id": f"r{i}", "level": [i]} for i in range(40)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def build(folder, name="rows.jsonl", **more):
    more.setdefault("held_out_fraction", 0.0 if "held_out_path" in more else 0.25)
    return build_task(FileTask(path=name, **more), folder)


def refusal(folder, name="rows.jsonl", **more):
    with pytest.raises(TaskError) as caught:
        build(folder, name, **more)
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(("name", "write"), [("rows.jsonl", write_jsonl), ("rows.parquet", write_parquet)])
def test_build_file_rows_carry_text_answer_and_ids(tmp_path, name, write):
    write(tmp_path / name, ROWS)
    task = build(
        tmp_path, name, columns={"id": "id", "extra": ["level"]}, rewrite={"match": r"\d+"}, template="{question}+1="
    )
    row = task.train[3]
    number = int(row.answer["answer"]) - 1
    assert row.row_id == f"train-r{number}"
    assert row.question == f"What is {number} + 1?"
    assert row.text == f"{number}+1="
    assert row.answer["entry"] == {
        "question": row.question,
        "answer": number + 1,
        "id": f"r{number}",
        "level": [number],
    }
    assert (row.dataset, row.answer["dataset"], row.row, task.name) == ("rows", "rows", 3, "rows")
    assert [one.row for one in task.held_out] == list(range(len(task.held_out)))
    assert task.held_out[0].row_id.startswith("held-out-r")


@pytest.mark.parametrize(("name", "write"), [("rows.jsonl", write_jsonl), ("rows.parquet", write_parquet)])
def test_build_file_rows_are_of_the_dataset_that_their_column_names(tmp_path, name, write):
    write(tmp_path / name, [{**row, "from": "odd" if row["answer"] % 2 else "even"} for row in ROWS])
    task = build(tmp_path, name, columns={"dataset": "from"})
    for row in [*task.train, *task.held_out]:
        wanted = "odd" if int(row.answer["answer"]) % 2 else "even"
        assert (row.dataset, row.answer["dataset"]) == (wanted, wanted)
    assert task.name == "rows"


def test_task_of_a_file_counts_its_datasets_and_refuses_settings_that_name_no_such(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{**row, "from": "odd" if row["answer"] % 2 else "even"} for row in ROWS])
    task = build(tmp_path, columns={"dataset": "from"})
    assert task.datasets == {name: sum(row.dataset == name for row in task.train) for name in ("odd", "even")}
    assert build(tmp_path).datasets == {"rows": len(task.train)}
    task.check_datasets(["odd", "even"])
    with pytest.raises(
        TaskError, match=r"beta_by_dataset must name datasets of the task; got 'evn'; did you mean even.*; there are: "
    ):
        task.check_datasets(["odd", "evn"])


@pytest.mark.parametrize("value", ["", "  ", None, 3])
def test_build_file_refuses_a_row_without_the_name_of_its_dataset(tmp_path, value):
    write_jsonl(tmp_path / "rows.jsonl", [{**ROWS[0], "from": "odd"}, {**ROWS[1], "from": value}])
    said = refusal(tmp_path, columns={"dataset": "from"})
    assert said.startswith(f"rows.jsonl:2: column 'from' must be the name of a dataset, as text; got {value!r}")


def test_build_file_formats_give_the_same_task(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    write_parquet(tmp_path / "rows.pq", ROWS)
    assert build(tmp_path, "rows.pq") == build(tmp_path)


def test_build_file_fraction_splits_about_that_part_and_never_moves_a_row(tmp_path):
    rows = [{"question": f"q{i}", "answer": "x"} for i in range(2000)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    write_jsonl(tmp_path / "more.jsonl", [*[{"question": f"p{i}", "answer": "x"} for i in range(50)], *rows])
    task, grown = build(tmp_path), build(tmp_path, "more.jsonl", seed=5)
    assert len(task.train) + len(task.held_out) == 2000
    # Four standard deviations of a binomial with 2000 draws at 1/4 are 77.
    assert abs(len(task.held_out) - 500) < 78
    assert {row.text for row in task.held_out} <= {row.text for row in grown.held_out}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    questions=st.lists(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=4), min_size=1, max_size=30
    ),
    fraction=st.floats(0.05, 0.95),
)
def test_build_file_any_texts_split_disjointly_and_alike(tmp_path, questions, fraction):
    write_jsonl(tmp_path / "rows.jsonl", [{"question": text, "answer": "x"} for text in [*questions, *questions]])
    try:
        task = build(tmp_path, held_out_fraction=fraction)
    except TaskError as error:
        said = str(error)
        assert any(why in said for why in ("must not be empty", "was held out", "are held out"))
        return
    sides = [{canonical_text(row.text) for row in side} for side in (task.train, task.held_out)]
    assert not sides[0] & sides[1]
    assert len(task.train) + len(task.held_out) == 2 * len(questions)
    assert build(tmp_path, held_out_fraction=fraction) == task


def test_build_file_held_out_file_drops_and_counts_overlap(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", [{"question": q, "answer": "x"} for q in ("a b", "a  b ", "c", "b a")])
    write_jsonl(tmp_path / "test.jsonl", [{"question": q, "answer": "y"} for q in ("a\tb", "d")])
    task = build(tmp_path, held_out_path="test.jsonl")
    assert [row.text for row in task.train] == ["c", "b a"]
    assert [row.row_id for row in task.train] == ["train-2", "train-3"]
    assert [row.answer["answer"] for row in task.held_out] == ["y", "y"]
    assert task.dropped_overlap == 2
    assert build(tmp_path, held_out_fraction=0.5).dropped_overlap == 0


def test_build_file_reads_windows_lines_blank_lines_and_a_byte_order_mark(tmp_path):
    text = '\ufeff{"question": "a\u2028b", "answer": "1"}\r\n\r\n{"question": "c", "answer": 2.5}'
    (tmp_path / "rows.ndjson").write_bytes(text.encode())
    write_jsonl(tmp_path / "test.jsonl", [{"question": "z", "answer": "y"}])
    task = build(tmp_path, "rows.ndjson", held_out_path="test.jsonl")
    assert [(row.text, row.answer["answer"]) for row in task.train] == [("a\u2028b", "1"), ("c", "2.5")]


GOOD = '{"question": "a", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        (GOOD + "{", {}, "rows.jsonl:2: not valid JSON"),
        (GOOD + '{"question": "a", "answer": NaN}', {}, "rows.jsonl:2: not valid JSON: NaN is no JSON number"),
        (GOOD + "\n[1]", {}, "rows.jsonl:3: each line must be a JSON object; got '[1]'"),
        (
            GOOD + '{"questoin": "a", "answer": "1"}',
            {},
            "rows.jsonl:2: no column 'question'; did you mean questoin?; there are: questoin, answer",
        ),
        (GOOD, {"columns": {"extra": ["level"]}}, "rows.jsonl:1: no column 'level'; there are: question, answer"),
        ("{}", {}, "rows.jsonl:1: no column 'question'; there are: none"),
        (
            '{"question": ["a"], "answer": "1"}',
            {},
            "rows.jsonl:1: column 'question', message 0 must be an object of role and content, both text; got 'a'",
        ),
        ('{"question": "a", "answer": null}', {}, "rows.jsonl:1: column 'answer' must be text or a number; got None"),
        ('{"question": "a", "answer": true}', {}, "column 'answer' must be text or a number; got True"),
        ('{"question": "a", "answer": 1e999}', {}, "rows.jsonl:1: column 'answer' must be plain data"),
        ('{"question": " ", "answer": "1"}', {}, "rows.jsonl:1: the prompt must not be empty"),
        ('{"question": "\\ud800", "answer": "1"}', {}, "rows.jsonl:1: the prompt must be Unicode text"),
        (
            GOOD * 2,
            {"columns": {"id": "question"}},
            "rows.jsonl:2: id 'a' must be unique; rows.jsonl:1 has it too",
        ),
        (GOOD, {"rewrite": {"match": "b"}}, "rows.jsonl:1: rewrite.match 'b' must match every row"),
        ("", {}, "rows.jsonl must have at least one row"),
        (GOOD, {"held_out_fraction": 1e-9}, "none of the 1 rows of rows.jsonl was held out; raise held_out_fraction"),
        (GOOD, {"held_out_fraction": 1 - 1e-9}, "all 1 rows of rows.jsonl are held out"),
        (GOOD, {"held_out_path": "rows.jsonl"}, "all 1 rows of rows.jsonl are held out"),
        (GOOD, {"held_out_path": "row.jsonl"}, "row.jsonl does not exist or is no file; beside it: rows.jsonl"),
        (GOOD, {"format": "parquet"}, "rows.jsonl: not a Parquet file that can be read"),
    ],
)
def test_build_file_bad_rows_are_refused_with_file_and_line(tmp_path, text, more, said):
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    assert said in refusal(tmp_path, **more)


def test_build_file_bytes_that_are_no_text_are_refused_with_their_line(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(GOOD.encode() + b'{"question": "\xff"}')
    assert "rows.jsonl:2: must be UTF-8 text" in refusal(tmp_path)


def test_build_file_empty_held_out_file_and_unknown_suffix_are_refused(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "rows.txt").write_text(GOOD)
    assert "none.jsonl must have at least one row" in refusal(tmp_path, held_out_path="none.jsonl")
    assert "rows.txt: format must be given" in refusal(tmp_path, "rows.txt")


def test_build_file_parquet_problems_name_column_and_row(tmp_path):
    day = datetime.date(2024, 1, 1)
    write_parquet(
        tmp_path / "rows.parquet",
        [{"question": "a", "answer": "1", "day": None}, {"question": "b", "answer": "1", "day": day}],
    )
    assert "rows.parquet: no column 'prompt'; there are: question, answer, day" in refusal(
        tmp_path, "rows.parquet", columns={"prompt": "prompt"}
    )
    assert "rows.parquet row 1: column 'day' must be plain data" in refusal(
        tmp_path, "rows.parquet", columns={"extra": ["day"]}
    )
    assert build(tmp_path, "rows.parquet", held_out_fraction=0.5).name == "rows"


def test_build_file_paths_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "rows.jsonl", ROWS)
    assert len(build(tmp_path, str(Path("data", "rows.jsonl"))).train) > 0


def test_build_file_answer_rewrite_cuts_the_gold_answer_out(tmp_path):
    rows = [{"question": f"q{i}", "answer": f"So {i} * 2 = {2 * i}.\n#### {2 * i},500"} for i in range(8)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    cut = {"match": r"#### (\S+)", "template": "{1}", "remove": [","]}
    task = build(tmp_path, answer_rewrite=cut, held_out_fraction=0.5)
    for row in [*task.train, *task.held_out]:
        assert row.answer["answer"] == f"{2 * int(row.text[1:])}500"
        assert row.answer["entry"]["answer"].startswith("So ")
    said = refusal(tmp_path, answer_rewrite={"match": r"(\d+)!"})
    assert said.startswith(
        "8 of 8 rows are malformed, mend them or take them out: no_match 8 (rows.jsonl:1: "
        r"answer_rewrite.match '(\\d+)!' must match every row; it does not match 'So 0"
    )


def test_build_file_max_held_out_drops_the_rest_from_neither_side(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    whole, part = build(tmp_path, held_out_fraction=0.5), build(tmp_path, held_out_fraction=0.5, max_held_out=3)
    assert [row.text for row in part.held_out] == [row.text for row in whole.held_out][:3]
    assert [row.text for row in part.train] == [row.text for row in whole.train]
