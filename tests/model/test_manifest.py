"""A manifest finds whatever is not as it was written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from samepath.model.manifest import MANIFEST_FILE, BrokenFolderError, require_whole, seal

FILES = {"config.json": b"{}\n", "model.safetensors": bytes(range(256)) * 5, "inner/vocab.txt": b"a\nb\n", "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "sealed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    seal(tmp_path / "sealed")
    return tmp_path / "sealed"


def test_seal_writes_size_and_hash_as_sha256sum_prints_it(folder: Path) -> None:
    require_whole(folder)
    files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    assert set(files) == set(FILES)
    # From `printf '{}\n' | sha256sum`.
    assert files["config.json"] == {
        "bytes": 3,
        "sha256": "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356",
    }


@pytest.mark.parametrize("name", sorted(set(FILES) - {"empty"}))
def test_require_whole_finds_every_flipped_bit_cut_and_empty_file_by_name(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(0, len(whole), 97)]
    cut = [whole[:length] for length in {0, 1, len(whole) // 2, len(whole) - 1}]
    for content in [*flipped, *cut, whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(BrokenFolderError, match=name.split("/")[-1].replace(".", r"\.")):
            require_whole(folder)
    path.write_bytes(whole)
    require_whole(folder)
    path.unlink()
    with pytest.raises(BrokenFolderError, match="is missing"):
        require_whole(folder)


def test_require_whole_manifest_cut_at_any_length_is_refused(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(BrokenFolderError, match=r"manifest\.json"):
            require_whole(folder)
    path.unlink()
    with pytest.raises(BrokenFolderError, match=r"python -m samepath\.model\.manifest"):
        require_whole(folder)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"files": {}}', '{"files": [1]}', '{"files": {"a": 3}}', '{"files": null}']
)
def test_require_whole_manifest_of_another_form_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST_FILE).write_text(text)
    with pytest.raises(BrokenFolderError, match=r"manifest\.json"):
        require_whole(folder)


def test_seal_as_a_command_makes_a_folder_without_manifest_acceptable(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    subprocess.run([sys.executable, "-m", "samepath.model.manifest", str(folder)], check=True)
    require_whole(folder)
