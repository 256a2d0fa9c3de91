"""What is written is so: the README's commands and codes, the settings, the changelog's version."""

import re
from pathlib import Path

import click
import pytest

import backup_dag.cli.main  # noqa: F401  registers every verb
from backup_dag import __version__
from backup_dag.cli.group import cli
from backup_dag.core.databases import configured
from backup_dag.core.errors import EXIT_CODES
from backup_dag.core.settings import Settings, load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_the_readme_names_each_verb_with_its_options(verb: str) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| `backup-dag {verb}"))
    options = [option.opts[0] for option in cli.commands[verb].params if isinstance(option, click.Option)]
    assert [option for option in options if option not in row] in ([], ["--json"])


def test_the_readme_has_the_exit_codes() -> None:
    for code, meaning in EXIT_CODES.items():
        assert f"| {code} | {meaning} |" in README


def test_the_changelogs_first_version_is_the_programs() -> None:
    found = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert found is not None
    assert found.group(1) == __version__


def test_the_example_settings_name_every_setting_and_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / ".env.example").read_text()
    for name in Settings.model_fields:
        assert re.search(rf"^#? ?{name.upper()}=", text, re.M), name
        monkeypatch.delenv(name.upper(), raising=False)
    for name in re.findall(r"^(AWS_\w+)=", text, re.M):
        monkeypatch.setenv(name, "kept")  # so that load, which sets what is not there, leaves no trace
    (tmp_path / ".env").write_text(text)
    assert load(tmp_path / ".env").database_url is not None


def test_the_example_backup_toml_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "backup.toml.example").read_text()
    for name in re.findall(r'^url_env = "(\w+)"', text, re.M):
        monkeypatch.setenv(name, "postgresql://user:password@host/name")
    (tmp_path / "backup.toml").write_text(text)
    settings = Settings.model_construct(
        **{
            **{name: field.default for name, field in Settings.model_fields.items()},
            "backup_config": tmp_path / "backup.toml",
        }
    )
    assert configured(settings, None)


def test_the_pictures_the_readme_shows_are_there() -> None:
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).stat().st_size > 0
