"""The shape of the code base, read from its syntax trees: who imports whom, sizes, and habits that are not allowed."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE: dict[str, str] = {
    "kernels": """
        mkl_mode
        backend window
        gpu/
        rows/ selection/
        sparse_attention/
        experts/ head/ dense_attention/ window_attention/
        indexer/
        triton_backend
    """,
    "model": """
        families rope_parameters config collectives durable_file json_file manifest placement shape trace plan model_input key_store policy
        text/ network/ transformers/
        text/encodings/ files/
    """,
    "rewards": """
        characters latex_commands markup spelling plain_latex unit_words unit magnitude number
        final_answer request score settings plugin exact length expression math gym_datasets reasoning_gym
        sandbox/
        runner
    """,
    "rollout": """
        sampling_settings
        token_digest seeds import_path
        types segments conservation sampling request record begun record_bytes stop_strings engine_errors bounded_call
        counters engine_description stepped_engine
        builtin/
        vllm/
        engine_settings
        capabilities engine weights/
        environments/foreign/
        environments/
        pool/
    """,
    "rl": """
        machine run_state interruption file_errors
        recipe/
        run_folder record_file group_journal begun_journal history
        objective/
        batch/ tasks/
        diagnostics/
        tracking/ evaluation/
        alerts/
        learner/ report/
        report/inspector/
        pretraining/
        compare/ validate/ preparation resume saving feed faults/
        kept_samples leftovers
        rollout_stream step_batch
        loop
        overlapped_loop
        training
        run sweep/
        preview preview_conversation notebook measure resampling replay_run doctor_command
        sample_command export_command compare_command sweep_command init_command text_command inspect_command starter/ completion/
        validate_command eval_command
        cli
    """,
}
"""The rooms (`name/`) and the single files of each folder. A line may import the lines above it, never one below or a room beside it; files
of one line and files inside a room may import each other as long as no circle arises. `rl → rollout → model → kernels` between folders."""
UPWARD = {("kernels/gpu/loading.py", "samepath.kernels.triton_backend")}
"""The one import that points up, late: every operation asks there for the kernels of the backend that a recipe names, and they stand in its room."""
FOLDERS = tuple(HOUSE)
MAY_IMPORT = {
    "kernels": {"kernels"},
    "model": {"model", "kernels"},
    "rewards": {"rewards"},
    "rollout": {"rollout", "rewards", "model", "kernels"},
    "rl": {"rl", "rollout", "rewards", "model", "kernels"},
}
"""`rewards` stands alone, and only `rollout` and `rl` know it."""
OUTSIDE = ("benchmarks", "examples", "recipes", "tests")
"""Stand beside the package and are not installed with it: they import it, and nothing in it imports them."""
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "misc"}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 70
MAX_KERNEL_LINES = 80
"""A kernel cannot be cut like other functions: a loop in a function of its own is scheduled otherwise, and its arguments alone take 20 lines."""
MAX_LOOP_LINES = 100
"""The training loop alone, a function of rl/loop.py or rl/run.py, may be this long."""
LOOP_FILES = {"rl/loop.py", "rl/overlapped_loop.py", "rl/run.py"}
ENVIRONMENT_FILES = {"rl/machine.py", "kernels/mkl_mode.py", "rewards/sandbox/environment.py"}
"""The second sets and reads MKL's mode alone, which must stand before the first product of anybody who imports a kernel."""
LIGHT_PACKAGES = {"pydantic", "pydantic_core", "yaml", "psutil", "typer", "rich"}
"""All that settings and the command line may import when they are imported, beside the standard library."""

FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]


@cache
def trees() -> list[tuple[str, ast.Module, list[str]]]:
    """(name, syntax tree, lines) of every source file of the five folders."""
    texts = [path.read_text(encoding="utf-8") for path in FILES]
    return [(name, ast.parse(text), text.splitlines()) for name, text in zip(NAMES, texts, strict=True)]


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Every imported module, late imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_folders_hold_code() -> None:
    """The walk below must not pass because it found nothing."""
    assert len(FILES) > 40
    assert {name.split("/")[0] for name in NAMES} == set(FOLDERS)


def test_imports_run_one_way() -> None:
    wrong = [
        f"{name} imports {module}"
        for name, tree, _ in trees()
        for module in imported_modules(tree)
        if module.split(".")[0] == "samepath"
        and (len(module.split(".")) < 3 or module.split(".")[1] not in MAY_IMPORT[name.split("/")[0]])
    ]
    assert wrong == []


def test_imports_of_own_modules_exist() -> None:
    modules = {"samepath." + name.removesuffix(".py").replace("/", ".") for name in NAMES}
    wrong = [
        f"{name} imports {module}"
        for name, tree, _ in trees()
        for module in imported_modules(tree)
        if module.split(".")[0] == "samepath" and module not in modules
    ]
    assert wrong == []


def test_imports_are_absolute_by_full_name() -> None:
    """`import kernels` would find another package of that name; a relative import hides where a name lives."""
    wrong = []
    for name, tree, _ in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                wrong.append(f"{name}:{node.lineno} is relative")
        wrong += [
            f"{name} imports {module}"
            for module in imported_modules(tree)
            if module.split(".")[0] in {*FOLDERS, *OUTSIDE}
        ]
    assert wrong == []


def test_late_imports_stand_below_their_reason() -> None:
    """Imports belong at the top; one inside a function, `try` or `if` has a comment above it that says why."""
    wrong = []
    for name, tree, lines in trees():
        late = {
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom) and node not in tree.body
        }
        for number in sorted(late):
            above = number - 1
            while above in late or lines[above - 1].strip() == "try:":
                above -= 1
            if not lines[above - 1].strip().startswith("#"):
                wrong.append(f"{name}:{number}")
    assert wrong == []


def test_tests_and_recipes_are_imported_by_nobody_and_recipes_hold_no_code() -> None:
    assert list((ROOT / "recipes").rglob("*.py")) == []


def test_folders_have_no_init_file() -> None:
    """An `__init__.py` here would shadow other packages under Ray, which puts the working directory first."""
    assert [str(path) for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")] == []


def place_of(module: str) -> tuple[str, str]:
    """(folder, `room/` or file) of `samepath.folder.room.file` or `samepath.folder.file`; a room inside a room is `room/inner/`."""
    _, folder, *rooms, name = module.split(".")
    return folder, "".join(f"{room}/" for room in rooms) or name


def test_every_file_has_its_place_in_the_house_and_every_place_exists() -> None:
    modules = ["samepath." + name.removesuffix(".py").replace("/", ".") for name in NAMES]
    listed = [(folder, place) for folder, lines in HOUSE.items() for place in lines.split()]
    assert len(listed) == len(set(listed))
    assert {place_of(module) for module in modules} == set(listed)


def test_rooms_are_imported_one_way() -> None:
    level = {
        (folder, place): number
        for folder, lines in HOUSE.items()
        for number, line in enumerate(lines.strip().splitlines())
        for place in line.split()
    }
    wrong = []
    for name, tree, _ in trees():
        here = place_of("samepath." + name.removesuffix(".py").replace("/", "."))
        for module in imported_modules(tree):
            if module.startswith("samepath."):
                there = place_of(module)
                beside = here != there and level[here] == level[there] and (here[1] + there[1]).count("/") > 0
                if there[0] == here[0] and (name, module) not in UPWARD and (level[there] > level[here] or beside):
                    wrong.append(f"{name} imports {module}")
    assert wrong == []


def test_files_import_each_other_without_circles() -> None:
    edges = {
        "samepath." + name.removesuffix(".py").replace("/", "."): {
            module
            for module in imported_modules(tree)
            if module.startswith("samepath.") and (name, module) not in UPWARD
        }
        for name, tree, _ in trees()
    }
    left = dict(edges)
    while free := [module for module, wanted in left.items() if not wanted & set(left)]:
        for module in free:
            del left[module]
    assert sorted(left) == []


def imported_at_start(tree: ast.Module) -> Iterator[str]:
    """Modules that importing the file imports: those at its top."""
    return imported_modules(
        ast.Module(body=[node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], type_ignores=[])
    )


def test_settings_and_the_command_line_import_only_light_packages() -> None:
    """`samepath --help`, `schema` and the report of a bad recipe wait for nothing of what a run needs, directly or through others."""
    parsed = {"samepath." + name.removesuffix(".py").replace("/", "."): tree for name, tree, _ in trees()}
    settings = {
        module
        for module, tree in parsed.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and (node.name.endswith("Settings") or node.name == "ModelConfig")
    }
    light = settings | {"samepath.rl.cli"} | {module for module in parsed if module.startswith("samepath.rl.recipe.")}
    assert len(settings) > 10
    wrong = []
    for start in sorted(light):
        seen, waiting = {start}, [start]
        while waiting:
            module = waiting.pop()
            for wanted in imported_at_start(parsed[module]):
                if wanted in parsed and wanted not in seen:
                    seen.add(wanted)
                    waiting.append(wanted)
                if wanted not in parsed and wanted.split(".")[0] not in {*sys.stdlib_module_names, *LIGHT_PACKAGES}:
                    wrong.append(f"{start} imports {wanted} in {module}")
    assert wrong == []


def test_file_names_say_what_is_inside() -> None:
    assert [name for name in NAMES if Path(name).stem in FORBIDDEN_NAMES] == []


def test_exceptions_are_caught_by_their_own_type() -> None:
    wrong = []
    for name, tree, _ in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                types = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                for kind in types:
                    if kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"}):
                        wrong.append(f"{name}:{node.lineno}")
    assert wrong == []


def test_files_are_short() -> None:
    wrong = [f"{name}: {len(lines)} lines" for name, _, lines in trees() if len(lines) > MAX_FILE_LINES]
    assert wrong == []


def test_functions_are_short() -> None:
    wrong = []
    for name, tree, _ in trees():
        for function in functions(tree):
            limit = MAX_LOOP_LINES if name in LOOP_FILES else MAX_FUNCTION_LINES
            names = {ast.unparse(decorator).split("(")[0] for decorator in function.decorator_list}
            if names & {"triton.jit", "gluon.jit"}:
                limit = MAX_KERNEL_LINES
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > limit:
                wrong.append(f"{name}:{function.lineno} {function.name}: {length} lines")
    assert wrong == []


def test_code_above_the_kernels_asks_what_a_backend_can_do_and_not_for_its_name() -> None:
    """Otherwise a new backend would change them all; inside `kernels/` only `reference`, the naive twin, is asked for by name."""
    wrong = []
    for name, tree, _ in trees():
        names = {"torch", "triton"} if name.startswith("kernels/") else {"reference", "torch", "triton"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                about_backend = any("backend" in ast.unparse(part) for part in (node.left, *node.comparators))
                if about_backend and names & {value for value in constants if isinstance(value, str)}:
                    wrong.append(f"{name}:{node.lineno}")
    assert wrong == []


def test_environment_is_touched_in_three_files_only() -> None:
    """`os.environ` and `os.getenv`, for reading and writing alike, stand in rl/machine.py, MKL's mode, and what reward children see."""
    wrong = []
    for name, tree, _ in trees():
        if name in ENVIRONMENT_FILES:
            continue
        for node in ast.walk(tree):
            attribute = isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv", "putenv"}
            direct = (
                isinstance(node, ast.ImportFrom)
                and node.module == "os"
                and any(alias.name in {"environ", "getenv", "putenv"} for alias in node.names)
            )
            if attribute or direct:
                wrong.append(f"{name}:{node.lineno}")
    assert wrong == []


def test_every_cpu_kernel_sets_the_mode_of_mkl() -> None:
    """The mode must stand before the first product: each file that may multiply on a CPU reaches `kernels/mkl_mode.py` by its imports."""
    imports = {name: set(imported_modules(tree)) for name, tree, _ in trees() if name.startswith("kernels/")}
    reached = {"kernels/mkl_mode.py"}
    while (
        more := {
            name
            for name, modules in imports.items()
            if modules & {"samepath." + other.removesuffix(".py").replace("/", ".") for other in reached}
        }
        - reached
    ):
        reached |= more
    on_gpu = ("gpu/", "triton_", "hopper_", "cuda_")
    left = {name for name in set(imports) - reached if not any(part in name for part in on_gpu)}
    # A plan holds data.
    assert left == {"kernels/window.py"}


@pytest.mark.parametrize("name", NAMES)
def test_file_says_what_it_is_for(name: str) -> None:
    docstring = ast.get_docstring({other: tree for other, tree, _ in trees()}[name])
    assert docstring
    assert docstring[0].isupper() or not docstring[0].isalpha()


MAY_WAIT_FOR_EVER = {
    ("model/transformers/packed_pass.py", "get"): "a context variable, no wait",
    ("rl/learner/rank_children.py", "recv"): "inside `bounded`",
    ("rl/learner/rank_process.py", "recv"): "a rank without work; it ends with its parent",
    (
        "rl/learner/checkpoint_writer.py",
        "result",
    ): "this process's own writing to its disk; under Ray the driver waits learner.update_timeout_s",
    ("rl/batch/score_groups.py", "result"): "futures that have their result",
    ("rollout/environments/episode_runner.py", "result"): "a future that has its result",
    ("rollout/environments/session_calls.py", "result"): "tasks that are done",
    ("rewards/runner.py", "get"): "a scoring thread without work",
    (
        "rewards/runner.py",
        "result",
    ): "futures that the scoring threads end, in bounded time, whatever becomes of a child",
    ("rollout/pool/process_worker.py", "recv"): "a worker without work; it hears of its parent's end",
    ("rollout/pool/process_pool.py", "recv"): "inside `bounded`",
    ("rollout/bounded_call.py", "wait"): "the thread that stays as long as a cluster",
    ("rollout/environments/answer_judge.py", "get"): "a thread that stays as long as its judge",
    ("rollout/environments/child.py", "wait"): "inside a timeout",
    ("rollout/environments/child_sessions.py", "result"): "a task that is done",
    ("rollout/environments/foreign/main.py", "result"): "a task that is done",
    ("rollout/environments/foreign/mcp_client.py", "result"): "tasks that are done",
    ("rollout/environments/foreign/mcp_client.py", "wait"): "a connection that stands as long as its sessions",
    ("rollout/environments/foreign/verifiers_client.py", "wait"): "what is served as long as there are sessions",
    ("rollout/environments/foreign/verifiers_client.py", "get"): "an episode's next word; the parent asks with a limit",
    ("rollout/environments/foreign/verifiers_client.py", "result"): "tasks that are done",
    (
        "rollout/environments/foreign/verifiers_seat.py",
        "get",
    ): "a context variable, and the model's next word, which the parent gives or ends",
    ("rollout/environments/foreign/verifiers_seat.py", "result"): "a task that is done",
    ("rl/sweep/runner.py", "wait"): "a run takes as long as it takes; a signal ends it",
    ("rl/sweep/runner.py", "result"): "the same",
    ("rl/tracking/mlflow_ui.py", "wait"): "`samepath ui` serves until it is ended",
    ("rl/tracking/ui_guard.py", "wait"): "the same; a signal ends it",
}
"""Waits without a bound, and why each is right."""
WAITS = {"wait", "join", "get", "result", "recv", "communicate", "acquire"}
RAY_CALLS = {"get", "put", "wait", "kill", "init", "shutdown"}


def test_waits_have_a_bound() -> None:
    found = {
        (name, node.func.attr)
        for name, tree, _ in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in WAITS
        and not node.args
        and not node.keywords
    }
    assert found == set(MAY_WAIT_FOR_EVER)


def test_calls_into_ray_are_made_by_a_bounded_wait() -> None:
    """Ray's own timeouts do not hold where Ray hangs: whatever enters it is a lambda that `ask` or `bounded` calls in a thread."""
    wrong, seen = [], 0
    for name, tree, _ in trees():
        inside = {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.Lambda) for node in ast.walk(outer)}
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            of_ray = isinstance(node.func.value, ast.Name) and node.func.value.id == "ray"
            if (of_ray and node.func.attr in RAY_CALLS) or (not of_ray and node.func.attr == "remote"):
                seen += 1
                wrong += [] if id(node) in inside else [f"{name}:{node.lineno} ray.{node.func.attr}"]
    assert wrong == []
    assert seen >= 15
