"""Pip's configuration: precedence, what uv is given, and that passwords stay out of messages and arguments."""

from pathlib import Path

import pytest

from bundler.packages.pipconfig import PipConfig, load_pip_config, parse_pip_config, redact


def test_precedence_is_pips() -> None:
    config = parse_pip_config(
        "global.find-links='/a /b'\nglobal.index-url='https://one.invalid/simple'\n"
        "download.index-url='https://two.invalid/simple'\n:env:.find-links='/c'\ninstall.no-index='true'\n"
    )
    assert config == PipConfig(index_url="https://two.invalid/simple", find_links=("/c",))


def test_uv_gets_secrets_by_environment_only() -> None:
    config = parse_pip_config(
        "global.extra-index-url='https://me:secret@x.invalid/simple'\nglobal.constraint='/c.txt'\nglobal.cert='/ca'\n"
    )
    assert config.uv_flags == ("--index-strategy", "unsafe-best-match", "--constraints", "/c.txt")
    assert config.uv_environment == {"UV_INDEX": "https://me:secret@x.invalid/simple", "SSL_CERT_FILE": "/ca"}
    assert parse_pip_config(":env:.no-index='1'").uv_flags == ("--no-index",)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("at https://me:p%40ss@x.invalid/simple: 401", "at https://***@x.invalid/simple: 401"),
        ("https://token@x.invalid", "https://***@x.invalid"),
        ("https://x.invalid/a@b", "https://x.invalid/a@b"),
    ],
)
def test_redact(text: str, clean: str) -> None:
    assert redact(text) == clean


def test_real_pip_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "pip.conf"
    path.write_text(
        "[global]\nindex-url = https://g.invalid/simple\n[download]\nextra-index-url =\n  https://a.invalid\n  https://b.invalid\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(path))
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path} {(tmp_path / 'none').as_uri()}")
    config = load_pip_config()
    assert config.index_url == "https://g.invalid/simple"
    assert config.extra_index_urls == ("https://a.invalid", "https://b.invalid")
    assert config.folders == (tmp_path,)
