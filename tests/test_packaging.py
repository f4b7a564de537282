"""The wheel holds `samepath` and nothing else, all of it, and works without the source tree."""

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "model", "rollout", "rewards", "rl")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that no build folder appears in the tree; nothing is downloaded."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for folder in (*FOLDERS, "recipes", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = target.glob("*.whl")
    return built


def names_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if not name.endswith("/")]


def test_wheel_holds_only_samepath(wheel: Path) -> None:
    roots = {name.split("/")[0] for name in names_of(wheel)}
    assert len(roots) == 2
    assert "samepath" in roots
    assert all(root == "samepath" or (root.startswith("samepath-") and root.endswith(".dist-info")) for root in roots)


def test_wheel_holds_every_module_of_the_five_folders_and_no_other(wheel: Path) -> None:
    packed = sorted(name for name in names_of(wheel) if name.startswith("samepath/"))
    modules = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    cuda_sources = list((ROOT / "kernels").rglob("*.cu"))
    page = [path for path in (ROOT / "rl").rglob("*") if path.suffix in (".html", ".css", ".js", ".yaml")]
    sources = sorted(f"samepath/{path.relative_to(ROOT).as_posix()}" for path in modules + cuda_sources + page)
    assert cuda_sources
    assert page
    assert sorted(set(packed) ^ set(sources)) == []
    assert packed == sources


def test_wheel_console_script_points_at_a_function_that_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = [name for name in archive.namelist() if name.endswith("dist-info/entry_points.txt")]
        parser = configparser.ConfigParser()
        parser.read_string(archive.read(entry_points).decode())
        assert dict(parser["console_scripts"]) == {"samepath": "samepath.rl.cli:main"}
        assert "\ndef main(" in archive.read("samepath/rl/cli.py").decode()


def test_wheel_carries_the_licence_and_its_python_range(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
        (metadata,) = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
        text = archive.read(metadata).decode()
    assert "\nName: samepath\n" in text
    assert "\nRequires-Python: <3.13,>=3.11\n" in text


def test_wheel_unpacked_is_imported_by_its_full_name(wheel: Path, tmp_path: Path) -> None:
    """In a bare interpreter (-S: no site-packages), so that nothing but the wheel's own files can answer."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = "import samepath.kernels.backend as m; print(m.__file__, m.require_backend('torch'))"
    program = f"import sys; sys.path.insert(0, {str(site)!r}); {code}"
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{site}/samepath/kernels/backend.py", "torch"]
