"""The documentation holds: links lead somewhere, commands and recipes exist, code blocks are the files' own."""

import ast
import re
import shlex
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import transformers
import typer
import yaml
from pydantic import TypeAdapter

from samepath.model.families import ModelType
from samepath.model.files.published_sizes import KNOWN_TYPES
from samepath.rewards.settings import RewardSettings
from samepath.rl.cli import app
from samepath.rl.recipe.file import load_recipe, recipe_keys
from samepath.rl.recipe.model import ModelSettings
from samepath.rl.recipe.recipe import Recipe
from samepath.rl.recipe.task import TaskSettings
from samepath.rl.recipe.text import TextRecipe
from tests.tiny_transformers import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "own_reward"


def without_code(text: str) -> str:
    """The page without fenced blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "``", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def links(text: str) -> list[str]:
    """Targets of Markdown links and images that are no web addresses."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(text))
    return [target for target in targets if not re.match(r"(https?|mailto):", target)]


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings: lower case, blanks to hyphens, punctuation dropped."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(text: str, language: str) -> list[str]:
    """Fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """Words of every `samepath …` line in a code span or a fenced block, without comments."""
    spans = re.findall(r"`(samepath [^`\n]+)`", text)
    lines = [line for block in blocks(text, "(?:bash|sh)?") for line in block.splitlines()]
    for command in [*spans, *(line for line in lines if line.startswith("samepath "))]:
        yield shlex.split(command, comments=True)


def test_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/algorithm.md", "examples/README.md"} <= set(NAMES)
    assert len(links(README)) > 8


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings_that_exist(name: str) -> None:
    page = ROOT / name
    wrong = []
    for target in links(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            wrong.append(f"{target}: no such file")
        elif not file.is_relative_to(ROOT):
            wrong.append(f"{target}: outside the project")
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            wrong.append(f"{target}: no such heading")
    assert wrong == []


def test_links_and_anchors_are_read_as_github_does() -> None:
    text = "# A `b` of C, d\n[x](y.md#z) ![p](q.png) [w](https://a.b) `[no](link)`\n```text\n[no](link)\n# no heading\n```\n"
    assert links(text) == ["y.md#z", "q.png"]
    assert anchors(text) == {"a-b-of-c-d"}


@pytest.mark.parametrize("name", NAMES)
def test_samepath_commands_exist_with_the_options_they_are_shown_with(name: str) -> None:
    group: Any = typer.main.get_command(app)
    wrong = []
    for words in commands((ROOT / name).read_text(encoding="utf-8")):
        command = group.commands.get(words[1])
        if command is None:
            wrong.append(" ".join(words))
            continue
        known = {option for parameter in command.params for option in parameter.opts}
        wrong += [f"{words[1]} {word}" for word in words if word.startswith("--") and word.split("=")[0] not in known]
    assert wrong == []


def test_readme_shows_every_command() -> None:
    group: Any = typer.main.get_command(app)
    assert {words[1] for words in commands(README)} == {
        name for name, command in group.commands.items() if not command.hidden
    }


@pytest.mark.parametrize("name", NAMES)
def test_run_commands_name_recipes_and_settings_that_exist(name: str) -> None:
    """A bare `recipe.yaml` is the example's; overrides must load."""
    for words in commands((ROOT / name).read_text(encoding="utf-8")):
        if words[1] in ("run", "validate") and len(words) > 2:
            path = EXAMPLE / words[2] if words[2] == "recipe.yaml" else ROOT / words[2]
            if "stage" in recipe_keys(path, words[3:]):
                assert load_recipe(path, words[3:], TextRecipe).stage.steps > 0
                continue
            assert load_recipe(path, words[3:], Recipe).rl.steps > 0


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = (ROOT / name).read_text(encoding="utf-8")
    shown = re.findall(r"`make ([a-z0-9-]+)", text) + re.findall(r"^make ([a-z0-9-]+)", text, re.MULTILINE)
    assert sorted(set(shown) - targets) == []


def test_readme_reward_function_is_the_example_files_own() -> None:
    """Statement by statement, because the file also holds a way to try it."""
    (shown,) = blocks(README, "python")
    file = {ast.dump(node) for node in ast.parse((EXAMPLE / "own_reward.py").read_text(encoding="utf-8")).body}
    assert [ast.unparse(node) for node in ast.parse(shown).body if ast.dump(node) not in file] == []
    assert shown.strip().count("\n") <= 10


def test_readme_settings_are_the_example_recipes_own() -> None:
    reward, environment = map(yaml.safe_load, blocks(README, "yaml"))
    recipe = yaml.safe_load((EXAMPLE / "recipe.yaml").read_text(encoding="utf-8"))
    assert reward["reward"] == recipe["reward"]
    recipe = yaml.safe_load((ROOT / "examples" / "own_environment" / "recipe.yaml").read_text(encoding="utf-8"))
    assert environment["task"].items() <= recipe["task"].items()


def test_examples_page_full_form_is_read_as_it_stands() -> None:
    (shown,) = blocks((ROOT / "examples" / "README.md").read_text(encoding="utf-8"), "yaml")
    settings = RewardSettings.model_validate(yaml.safe_load(shown)["reward"])
    assert list(settings.parts) == ["answer", "shown_work"]
    assert (ROOT / settings.search_path / "own_reward.py").is_file()


def test_flow_picture_is_well_formed_and_asks_for_nothing_from_outside() -> None:
    text = (ROOT / "docs" / "flow.svg").read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.search(r"(href|src|url)\s*[=(]\s*[\"']?https?:", text)
    words = " ".join("".join(node.itertext()) for node in root.iter() if node.tag.endswith("text"))
    for step in ("prompt", "rollout", "reward", "advantage", "objective", "optimiser", "weights"):
        assert step in words


def defined_names(path: Path) -> set[str]:
    """Functions, classes, methods, constants and annotated fields that a file defines; imported names are not among them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
            names |= {target.attr for target in targets if isinstance(target, ast.Attribute)}
    return names


@pytest.mark.parametrize("name", NAMES)
def test_functions_named_with_a_file_are_defined_there(name: str) -> None:
    """`function` in [file](…): the function, class, constant or setting is defined in that file, not only imported or mentioned."""
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`(?:,? in)?\s+\(?\[[^\]]+\.py\]\(([./\w]+\.py)\)", text)
    wrong = [
        f"{symbol} in {file}"
        for symbol, file in found
        if symbol.rpartition(".")[2] not in defined_names((page.parent / file).resolve())
    ]
    assert wrong == []
    assert found or name not in {"docs/algorithm.md", "docs/architecture.md", "docs/kernels.md", "docs/engines.md"}


@cache
def names_of_tests() -> frozenset[str]:
    """Every test function of the suite."""
    found: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        found |= set(re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    return frozenset(found)


@pytest.mark.parametrize("name", NAMES)
def test_tests_that_a_page_names_exist(name: str) -> None:
    """A name that ends in … stands for every test that begins like it."""
    for named, cut in re.findall(r"`(test_\w+)(…)?`", (ROOT / name).read_text(encoding="utf-8")):
        same = [test for test in names_of_tests() if (test.startswith(named) if cut else test == named)]
        assert same, f"no test is called {named}"


def test_defined_names_leaves_imported_names_out(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        "from os import sep\nLIMIT = 3\nclass Page:\n    size: int\n    def turn(self):\n        self.place = sep\n"
    )
    assert defined_names(file) == {"LIMIT", "Page", "size", "turn", "place"}


@pytest.mark.parametrize("name", [name for name in NAMES if "/results/" not in name])
def test_tables_have_no_row_twice(name: str) -> None:
    """Rows of one table are told apart by their first two cells."""
    wrong: list[list[str]] = []
    seen: list[list[str]] = []
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if not line.lstrip().startswith("|"):
            seen = []
            continue
        cell = [cell.strip() for cell in line.strip().strip("|").split(" | ")[:2]]
        if set("".join(cell)) - set("-: |") and cell in seen:
            wrong.append(cell)
        seen.append(cell)
    assert wrong == []


def test_start_page_lists_every_recipe_and_metrics_that_exist() -> None:
    start = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(\.\./recipes/([\w.]+)\)", start)) == {
        path.name for path in (ROOT / "recipes").glob("*.yaml")
    }
    known = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
    shown = re.findall(r"`((?:policy|kl|routing|reward|rollout|eval|learner)/[\w.*]+)`", start)
    assert len(shown) > 8
    assert [metric for metric in shown if metric.rstrip("*.").split("_p9")[0] not in known] == []


def test_results_pages_are_all_listed() -> None:
    listed = set(links((ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in (ROOT / "docs" / "results").glob("*.md")} - {"README.md"}


def test_models_page_names_the_families_that_the_code_has() -> None:
    """Columns: family, own, transformers, built-in engine, vLLM, parameters counted."""
    rows = [line.split(" | ") for line in MODELS.splitlines() if re.match(r"\| [^|]+\(`\w+`", line)]
    cells = {name: row for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert {name for name, row in cells.items() if row[1] == "tested"} == set(get_args(ModelType))
    assert {name for name, row in cells.items() if row[3] == "tested"} == set(get_args(ModelType))
    assert {name for name, row in cells.items() if row[5].startswith("yes")} == set(KNOWN_TYPES)
    tried = {getattr(transformers, f"{name}Config").model_type for name in FAMILIES}
    assert {name for name, row in cells.items() if row[2] == "tested"} == tried


@pytest.mark.parametrize("number", range(2))
def test_models_page_settings_are_read_as_they_stand(number: int) -> None:
    shown = yaml.safe_load(blocks(MODELS, "yaml")[number])
    if "task" in shown:
        task = TypeAdapter(TaskSettings).validate_python(shown["task"])
        assert task.chat.form is not None
    else:
        assert TypeAdapter(ModelSettings).validate_python(shown["model"]).path == "Qwen/Qwen3-0.6B"
