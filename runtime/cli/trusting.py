"""Who is trusted: the ``trust`` commands, and the choice that ``install`` and ``verify`` make with their options."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from manifests.errors import TrustError, UsageError
from runtime.cli.shared import Commands, add_command, add_prefix, answer, parse_trust, read_trust, say

if TYPE_CHECKING:
    from manifests.bundle import TrustedBundle
    from manifests.trust import AllowedSigner, TrustRoot
    from runtime.layout import Prefix, Release
    from runtime.state import CheckTime


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustChoice:
    """Whom a command trusts: the text of the file, the signers less those revoked, and the time of the check."""

    text: str
    trust: "TrustRoot"
    time: "CheckTime"


def add_trust_commands(commands: Commands) -> None:
    """Add ``trust`` and its own commands to the parser."""
    text = "Keep the signers that a prefix trusts: init, add, list, remove."
    group = commands.add_parser("trust", help=text, description=text)
    group.add_argument("--version", action="version", version=f"runtime {_version()}")
    actions = group.add_subparsers(metavar="ACTION", required=True, dest="action")
    init = add_command(actions, "init", "Trust the signers of FILE from now on, each one's fingerprint confirmed.")
    add = add_command(actions, "add", "Trust the signers of FILE too, each new one's fingerprint confirmed.")
    for parser, command in ((init, _init), (add, _add)):
        parser.add_argument("file", type=Path, metavar="FILE", help="an OpenSSH allowed_signers file")
        add_prefix(parser)
        text = "SHA256:... as the builder told you, once for each key; without it a terminal asks"
        parser.add_argument("--fingerprint", action="append", default=[], metavar="FINGERPRINT", help=text)
        parser.set_defaults(command=command)
    listed = add_command(actions, "list", "Show who is trusted, as ssh-keygen -l does.")
    add_prefix(listed)
    listed.set_defaults(command=_list)
    remove = add_command(actions, "remove", "Stop trusting a key; installed releases stay.")
    remove.add_argument("fingerprint", metavar="FINGERPRINT", help="SHA256:... as `trust list` shows it")
    add_prefix(remove)
    remove.set_defaults(command=_remove)


def choose_trust(arguments: argparse.Namespace, prefix: "Prefix | None", *, confirmed: bool = False) -> TrustChoice:
    """Return whom ``install`` and ``verify`` trust, and say so where the time isn't the clock's.

    Args:
        arguments: With ``--trust``, ``--revoked`` and ``--verify-time``.
        prefix: Whose signers are taken without ``--trust``.
        confirmed: Take them only if ``trust init`` put them there, not as a copy of an earlier install.

    Raises:
        UsageError: No file was given, and there is none to fall back on.
        TrustError: The file or a revocation list is malformed.
    """
    from runtime.state import check_time, load_state
    from runtime.trust import TRUST_NAME, prefix_revoked, require_pinned, with_revoked

    path: Path | None = arguments.trust
    if path is None and prefix is None:
        hint = "the file came with the kit, not the bundle"
        raise UsageError("verify BUNDLE needs --trust ALLOWED_SIGNERS", hint=hint)
    if path is None and prefix is not None:
        path = prefix.etc / TRUST_NAME
        text = require_pinned(prefix) if confirmed else read_trust(path)
    else:
        path = Path(arguments.trust)
        text = read_trust(path)
    revoked = [_read_revoked(arguments.revoked)] if arguments.revoked else []
    if prefix is not None:
        revoked.append(prefix_revoked(prefix))
    time = check_time(load_state(prefix) if prefix else None, datetime.now(UTC), arguments.verify_time)
    if time.note:
        say(time.note)
    return TrustChoice(text=text, trust=with_revoked(parse_trust(text, path), *revoked), time=time)


def offer_rotation(
    arguments: argparse.Namespace, prefix: "Prefix", release: "Release", bundle: "TrustedBundle", chosen: TrustChoice
) -> dict[str, object]:
    """Show the signers that an installed bundle proposes, and keep them where the operator accepts.

    The bundle has to be signed under the signers that the prefix has, whatever ``--trust`` was given.
    """
    from manifests.trust import verify_signatures
    from runtime.trust import TRUST_NAME, accept_rotation, pinned_text, proposed_rotation, with_revoked

    path, pinned = prefix.etc / TRUST_NAME, pinned_text(prefix)
    old = with_revoked(parse_trust(pinned, path), chosen.trust.revoked) if pinned else chosen.trust
    medium = bundle.medium
    wanted, now = arguments.signatures, chosen.time.now
    try:
        rotation = proposed_rotation(release, bundle, old)
        if rotation is None:
            return {}
        verify_signatures(medium.manifest_bytes, medium.signature_slot, old, threshold=wanted, now=now)
    except TrustError as error:
        if arguments.accept_signers:
            raise
        say(f"the signers of this prefix stay; what this bundle proposes can't be accepted: {error.message}")
        return {"signers_accepted": False}
    say("this bundle proposes other signers for the next one:")
    for line in rotation.lines():
        say(f"  {line}")
    accepted = arguments.accept_signers or (sys.stdin.isatty() and _confirmed("trust exactly these from now on?"))
    if accepted:
        accept_rotation(prefix, rotation, release)
        say(f"{path} now has them")
    else:
        say("the signers of this prefix stay as they are; to accept: run the same install with --accept-signers")
    return {"signers_accepted": accepted}


def _init(arguments: argparse.Namespace) -> int:
    from runtime.layout import Prefix
    from runtime.trust import init_signers, pinned_text

    prefix = Prefix(path=arguments.prefix.absolute())
    text = read_trust(arguments.file)
    signers = parse_trust(text, arguments.file).signers
    if pinned_text(prefix) is None:  # what would be refused anyway is not asked about
        _confirm(arguments, signers)
    init_signers(prefix, text, where=str(arguments.file))
    _answer_signers(arguments, prefix, signers, "trusted")
    return 0


def _add(arguments: argparse.Namespace) -> int:
    from runtime.layout import Prefix
    from runtime.trust import add_signers, new_signers

    prefix = Prefix(path=arguments.prefix.absolute())
    text, where = read_trust(arguments.file), str(arguments.file)
    new = new_signers(prefix, text, where=where)
    if new:
        _confirm(arguments, new)
    added = add_signers(prefix, text, where=where)
    _answer_signers(arguments, prefix, added, "trusted too" if added else "nothing is new")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from runtime.layout import Prefix
    from runtime.trust import TRUST_NAME, require_pinned

    prefix = Prefix(path=arguments.prefix.absolute())
    signers = parse_trust(require_pinned(prefix), prefix.etc / TRUST_NAME).signers
    _answer_signers(arguments, prefix, signers, "")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    from runtime.layout import Prefix
    from runtime.trust import remove_signer

    prefix = Prefix(path=arguments.prefix.absolute())
    _answer_signers(arguments, prefix, remove_signer(prefix, arguments.fingerprint), "no longer trusted")
    return 0


def _confirm(arguments: argparse.Namespace, signers: "Sequence[AllowedSigner]") -> None:
    """Have an operator confirm every key: by typing fingerprints, or by a yes at a terminal; never silently."""
    from runtime.trust import check_fingerprints, fingerprint_line

    for signer in signers:
        say(fingerprint_line(signer))
    if arguments.fingerprint:
        check_fingerprints(signers, arguments.fingerprint, where=str(arguments.file))
    elif not sys.stdin.isatty():
        hint = "the builder tells you by another way than the medium: --fingerprint SHA256:..., once for each key"
        raise UsageError(
            f"{arguments.file}: nobody confirmed these fingerprints; nothing is trusted silently", hint=hint
        )
    elif not _confirmed("are these the fingerprints that the builder told you?"):
        raise TrustError(f"{arguments.file}: not confirmed; nothing was changed")


def _confirmed(question: str) -> bool:
    print(f"{question} [yes/no] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == "yes"


def _answer_signers(
    arguments: argparse.Namespace, prefix: "Prefix", signers: "Sequence[AllowedSigner]", what: str
) -> None:
    from runtime.trust import fingerprint_line, prefix_revoked

    revoked = prefix_revoked(prefix)
    rows = [
        {
            "principals": signer.principals,
            "fingerprint": signer.key.fingerprint,
            "type": signer.key.type,
            "namespaces": list(signer.namespaces),
            "valid_after": _written(signer.valid_after),
            "valid_before": _written(signer.valid_before),
            "revoked": signer.key.blob in revoked,
        }
        for signer in signers
    ]
    lines = [f"{fingerprint_line(s)}{' REVOKED' if s.key.blob in revoked else ''}{_limits(s)}" for s in signers]
    answer(arguments, {"prefix": str(prefix.path), "signers": rows}, [*lines, *([what] if what else [])])


def _limits(signer: "AllowedSigner") -> str:
    limits = (("after", signer.valid_after), ("before", signer.valid_before))
    return "".join(f" valid-{name} {_written(time)}" for name, time in limits if time is not None)


def _written(time: datetime | None) -> str | None:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}" if time else None


def _read_revoked(path: Path) -> frozenset[bytes]:
    from manifests.revocation import parse_revoked_keys

    try:
        return parse_revoked_keys(path.read_bytes(), where=str(path))
    except FileNotFoundError:
        hint = "public keys, one a line, as in a .pub file; an empty file revokes none"
        raise UsageError(f"{path}: no such list of revoked keys", hint=hint) from None


def _version() -> str:
    from manifests import __version__

    return __version__
