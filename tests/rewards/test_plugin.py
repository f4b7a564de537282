"""Import paths that name no usable function are refused with what to change."""

import sys

import pytest

from samepath.rewards.plugin import PluginError, resolve


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A folder first on sys.path, whose modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_resolve_good_path_gives_the_function():
    from samepath.rewards.exact import number

    assert resolve("samepath.rewards.exact:number", {"marker": "#"}) is number


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("samepath.rewards.exact", {}, "must be written `package.module:function`"),
        ("samepath.rewards.exakt:number", {}, r"no module 'samepath.rewards.exakt'. Did you mean 'exact'\?"),
        ("samepath.rewards.exact:numbr", {}, r"has no 'numbr'. Did you mean 'number'\?"),
        (
            "samepath.rewards.exact:number",
            {"markr": "#"},
            r"unexpected keyword argument 'markr'. Did you mean 'marker'\?",
        ),
        ("samepath.rewards.length:brevity", {}, "missing a required argument: 'max_tokens'"),
        ("string:digits", {}, "must be a function; got a str"),
        ("time:time", {}, r"no signature that can be checked|must be callable as f\(request\)"),
    ],
)
def test_resolve_wrong_path_or_options_says_what_is_wrong(path, options, message):
    with pytest.raises(PluginError, match=message):
        resolve(path, options)


def test_resolve_misspelt_own_module_suggests_the_file(own_folder):
    (own_folder / "own_checker.py").write_text("def f(request): return 1\n")
    with pytest.raises(PluginError, match=rf"Did you mean 'own_checker'\? .*{own_folder.name}"):
        resolve("own_chekcer:f", {})


def test_resolve_function_without_request_shows_its_signature(own_folder):
    (own_folder / "own_bare.py").write_text("def f(): return 1\n")
    with pytest.raises(PluginError, match=r"callable as f\(request\), but its signature is \(\)"):
        resolve("own_bare:f", {})


def test_resolve_missing_import_inside_the_module_passes_through(own_folder):
    (own_folder / "own_needy.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        resolve("own_needy:f", {})
