"""Keys that no longer count: ``--revoked``, and the prefix's own list."""

from pathlib import Path

from tests.factories import Key
from tests.factories_closed import ClosedBundle, Host
from tests.factories_trust import pin, shown, trust


def test_revoked_keys(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key, installed: Path) -> None:
    revoked = tmp_path / "revoked"
    revoked.write_text(f"# lost on a train\n{closed_key.public.line} old key\n")
    message = f"key {closed_key.public.fingerprint} (release@example.com) is revoked"
    given = ("--trust", first.trust, "--revoked", revoked)
    for words in (("install", first.tar, "--prefix", tmp_path / "prefix"), ("verify", first.tar)):
        done = host.runtime(first.pyz, *words, *given)
        assert (done.returncode, done.stdout) == (4, "")
        assert message in done.stderr
    assert not (tmp_path / "prefix").exists()
    there = host.runtime(first.pyz, "verify", "--prefix", installed, "--no-models", *given)
    assert there.returncode == 4
    assert message in there.stdout
    missing = host.runtime(first.pyz, "verify", first.tar, "--trust", first.trust, "--revoked", tmp_path / "none")
    told = f"error: {tmp_path}/none: no such list of revoked keys\nhint: public keys, one a line, as in a .pub file; "
    assert (missing.returncode, missing.stderr) == (2, f"{told}an empty file revokes none\n")


def test_the_prefix_s_own_revocation_list(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key) -> None:
    prefix = tmp_path / "prefix"
    pin(host, first, prefix, closed_key)
    (prefix / "etc/revoked_keys").write_text(f"{closed_key.public.line}\n")
    for words in ((), ("--trust", first.trust)):
        done = host.runtime(first.pyz, "install", first.tar, "--prefix", prefix, *words)
        assert done.returncode == 4
        assert "is revoked" in done.stderr
    assert trust(host, first, "list", "--prefix", prefix).stdout == shown(closed_key, " REVOKED")
    (prefix / "etc/revoked_keys").write_bytes(b"SSHKRL\n\0\0\0\0\x01")
    done = host.runtime(first.pyz, "install", first.tar, "--prefix", prefix)
    assert done.returncode == 4
    assert f"error: {prefix}/etc/revoked_keys: is a binary KRL, which isn't supported\n" in done.stderr
    assert not list((prefix / "releases").iterdir())


def test_install_sh_hands_the_options_on(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key) -> None:
    (tmp_path / "revoked").write_text(f"{closed_key.public.line}\n")
    words = ("sh", first.kit / "install.sh", "--kit", first.kit, "--verify-time", "20260103Z")
    done = host.run(*words, "--revoked", tmp_path / "revoked", first.tar, "--prefix", tmp_path / "prefix")
    assert done.returncode == 4
    assert "signatures judged at --verify-time 2026-01-03T00:00:00Z\n" in done.stderr
    assert f"key {closed_key.public.fingerprint} (release@example.com) is revoked" in done.stderr
