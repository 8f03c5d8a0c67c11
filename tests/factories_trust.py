"""What tests of trust do over and over: confirm signers, look at what is kept, type at a terminal."""

import os
import pty
import subprocess
from pathlib import Path

from tests.factories import Key
from tests.factories_closed import ClosedBundle, Host


def kept(prefix: Path) -> str:
    """Return the text of the prefix's allowed_signers."""
    return (prefix / "etc/allowed_signers").read_text()


def log_of(prefix: Path) -> list[str]:
    """Return the lines of the prefix's log without their times."""
    lines = (prefix / "var/logs/releases.log").read_text().splitlines()
    return [line.partition(" ")[2] for line in lines]


def shown(key: Key, note: str = "") -> str:
    """Return the line that ``ssh-keygen -l`` and our commands show of a key."""
    return f"256 {key.public.fingerprint} {key.identity} (ED25519){note}\n"


def trust(host: Host, bundle: ClosedBundle, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run ``runtime trust``."""
    return host.runtime(bundle.pyz, "trust", *words)


def pin(host: Host, bundle: ClosedBundle, prefix: Path, *keys: Key) -> None:
    """Confirm the signers of a prefix."""
    (host.home / "pin").write_text("".join(key.allowed_signers.read_text() for key in keys))
    typed = [word for key in keys for word in ("--fingerprint", key.public.fingerprint)]
    done = trust(host, bundle, "init", host.home / "pin", "--prefix", prefix, *typed)
    assert done.returncode == 0, done.stderr


def at_terminal(host: Host, bundle: ClosedBundle, answer: str, *words: str | Path) -> tuple[int, str]:
    """Run a runtime command whose stdin is a terminal where a person types ``answer``; return code and stderr."""
    here, there = pty.openpty()
    try:
        process = subprocess.Popen(
            host.command(*host.runtime_words(bundle.pyz, *words)),
            env=host.environment,
            stdin=there,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.write(here, answer.encode())
        _, words_of = process.communicate(timeout=60)
        return process.returncode, words_of
    finally:
        os.close(here)
        os.close(there)
