"""Attacks that the operator's trust file, revocation list or threshold stops."""

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.hostile.lab import Attack, Hostile, Lab, Outcome, Stage
from tests.hostile.signatures import FITS, MESSAGE, MISFITS, SIGN_UNFIT, UNFIT, armor, blob, block, raw_signature, text


def _token(lab: Lab, flags: int) -> bytes:
    """Return the wire form of a token's key, and an armored signature that it made with these flags."""
    key = text("sk-ssh-ed25519@openssh.com") + text(lab.key.public.point) + text("ssh:")
    inner = text("sk-ssh-ed25519@openssh.com") + text(raw_signature(lab.key)) + bytes([flags]) + bytes(4)
    return armor(blob(lab.key, key=text(key), inner=text(inner)))


def _token_line(lab: Lab) -> str:
    key = text("sk-ssh-ed25519@openssh.com") + text(lab.key.public.point) + text("ssh:")
    return f"token@example.com sk-ssh-ed25519@openssh.com {base64.b64encode(key).decode()}\n"


def _trust(
    name: str,
    did: str,
    words: str,
    line: Callable[[Lab], str],
    *,
    make: Callable[[Lab], bytes] | None = None,
    options: tuple[str, ...] = (),
    others: Mapping[str, Outcome] | None = None,
) -> Attack:
    """Return an attack that the operator's trust file stops."""

    def build(lab: Lab) -> Hostile:
        path = lab.slotted(make(lab) if make else block(lab.key))
        return Hostile(path=path, trust=lab.trust_file(line(lab)), options=options)

    base = {"inspect": Outcome(code=0, words=FITS)}
    return Attack(
        name=name, did=did, build=build, stage=Stage.SIGNATURE, code=4, words=words, others=base | dict(others or {})
    )


def _revoked(lab: Lab) -> Hostile:
    path = lab.slotted(block(lab.key))
    trust = lab.trust_file(f"release@example.com {lab.key.public.line}\n")
    revoked = trust.with_name("revoked_keys")
    revoked.write_text(f"{lab.key.public.line}\n")
    return Hostile(path=path, trust=trust, options=("--revoked", revoked))


def _other_manifest(lab: Lab) -> Path:
    """Change the version in the manifest and keep the signature."""
    changed = MESSAGE.replace(b'"version":"1.0.0"', b'"version":"9.9.9"')
    assert len(changed) == len(MESSAGE)
    return lab.spliced(512, 512 + len(MESSAGE), changed)


def _line(options: str) -> Callable[[Lab], str]:
    return lambda lab: f"release@example.com {options}{lab.key.public.line}\n"


_PASSES: Final = Outcome(code=6, words="the bundle carries no uv")


_TWO: Final = ("--signatures", "2")


TRUSTS: Final = (
    _trust(
        "trust-expired",
        "used a key that expired",
        "was valid only before 2020-01-01 00:00:00Z",
        _line('valid-before="20200101Z" '),
    ),
    _trust(
        "trust-not-yet",
        "used a key before its time",
        "is valid only after 2999-01-01 00:00:00Z",
        _line('valid-after="29990101Z" '),
    ),
    _trust(
        "trust-namespaces",
        "used a key for git commits",
        "is not allowed in namespace sealift-bundle-v1",
        _line('namespaces="git" '),
    ),
    _trust(
        "trust-namespace-negated",
        "used a key that mustn't sign bundles",
        "is not allowed in namespace",
        _line('namespaces="*,!sealift-bundle-v1" '),
    ),
    _trust(
        "trust-same-key-twice",
        "signed twice for two signatures",
        "1 of 2 trusted signatures",
        _line(""),
        make=lambda lab: block(lab.key) * 2,
        options=_TWO,
        others={"rehearse": _PASSES},
    ),
    _trust(
        "trust-same-key-two-names",
        "was listed under two names",
        "1 of 2 trusted signatures",
        lambda lab: f"a@example.com {lab.key.public.line}\nb@example.com {lab.key.public.line}\n",
        make=lambda lab: block(lab.key) * 2,
        options=_TWO,
        others={"rehearse": _PASSES},
    ),
    _trust(
        "trust-one-of-two",
        "added his own signature for the second",
        "1 of 2 trusted signatures",
        _line(""),
        make=lambda lab: block(lab.key) + block(lab.stranger),
        options=_TWO,
        others={"rehearse": _PASSES},
    ),
    _trust(
        "trust-cert-authority",
        "got a certificate authority listed",
        "cert-authority isn't supported",
        _line("cert-authority "),
    ),
    _trust(
        "trust-token-untouched",
        "used a token that nobody touched",
        UNFIT,
        _token_line,
        make=lambda lab: _token(lab, 0),
        others={"inspect": Outcome(code=0, words=MISFITS), "sign": SIGN_UNFIT},
    ),
    _trust(
        "trust-token-relabelled",
        "called a file key's signature a token's",
        UNFIT,
        _token_line,
        make=lambda lab: _token(lab, 1),
        others={"inspect": Outcome(code=0, words=MISFITS), "sign": SIGN_UNFIT},
    ),
    Attack(
        name="trust-revoked",
        did="used a key that was stolen and revoked",
        build=_revoked,
        stage=Stage.SIGNATURE,
        code=4,
        words="is revoked",
        others={"inspect": Outcome(code=0, words=FITS), "rehearse": _PASSES},
    ),
    Attack(
        name="sig-manifest-changed",
        did="changed the manifest and kept the signature",
        build=_other_manifest,
        stage=Stage.SIGNATURE,
        code=4,
        words=UNFIT,
        others={"inspect": Outcome(code=0, words=MISFITS), "sign": SIGN_UNFIT},
    ),
)
