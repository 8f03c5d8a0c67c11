"""Commands about keys and signatures: keygen, sign, manifest."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bundler.cli.registries import bundle_arguments
from bundler.cli.shared import PATH, answer, command, identity_of, json_option, read_signer
from manifests.errors import UsageError

if TYPE_CHECKING:
    from manifests.reference import Remote


@command("keygen")
@click.argument("path", type=PATH)
@click.option("--identity", required=True, metavar="WHO", help="Who signs, such as release@example.com.")
@json_option
def keygen(path: Path, identity: str, *, as_json: bool) -> None:
    """Make a signing key: PATH, PATH.pub and PATH.allowed_signers."""
    from bundler.sealing.keys import write_key

    signer = write_key(path, identity)
    document = {"key": str(path), "fingerprint": signer.key.fingerprint, "allowed_signers": f"{path}.allowed_signers"}
    lines = [
        f"{path}  the private key: keep it off every medium that crosses",
        f"{path}.pub",
        f"{path}.allowed_signers  the closed side's trust file: it travels by another way than the bundle",
        f"fingerprint {signer.key.fingerprint}",
    ]
    answer(document, "\n".join(lines), as_json=as_json)


@command("sign")
@click.argument("bundle", type=PATH)
@click.option("--key", metavar="FILE", help="OpenSSH Ed25519 private key, or agent:FINGERPRINT for one of ssh-agent.")
@click.option("--attach", type=PATH, metavar="FILE.sig", help="A signature made elsewhere with ssh-keygen -Y sign.")
@click.option(
    "--identity", metavar="WHO", help="Who signs, as in the kit's allowed_signers. [default: KEY.pub's comment]"
)
@json_option
def sign(bundle: Path, key: str | None, attach: Path | None, identity: str | None, *, as_json: bool) -> None:
    """Fill or co-sign the signature slot of BUNDLE in place, and name the signer in the kit that lies beside it."""
    from bundler.sealing.keys import allowed_signers_line
    from bundler.sealing.kit import trust_in_kit
    from bundler.sealing.sign import attach_signature, sign_bundle

    if (key is None) == (attach is None):
        raise UsageError("sign takes --key FILE or --attach FILE.sig, one of the two", hint="bundler sign --help")
    signer = read_signer(key) if key is not None else None
    if signer is not None:
        done = sign_bundle(bundle, signer)
    elif attach is not None:
        if not attach.is_file():
            raise UsageError(f"{attach}: no such file", hint="ssh-keygen -Y sign writes it: manifest.json.sig")
        done = attach_signature(bundle, attach.read_bytes())
    document: dict[str, object] = {"bundle": str(bundle), "signatures": done.count}
    lines = [f"{bundle} has {done.count} signatures"]
    if done.kit.is_dir():
        digest = trust_in_kit(done.kit, allowed_signers_line(done.key, identity or identity_of(key, signer)))
        document |= {"kit": str(done.kit), "kit_digest": digest}
        lines.append(f"{done.kit}  its digest, for the telephone: {digest}")
    answer(document, "\n".join(lines), as_json=as_json)


@command("manifest")
@bundle_arguments("bundle")
def manifest(bundle: "Path | Remote") -> None:
    """Print the manifest.json of BUNDLE, to be signed elsewhere."""
    from manifests.manifest import parse_manifest
    from manifests.medium import open_medium

    with open_medium(bundle) as medium:
        parse_manifest(medium.manifest_bytes)
        sys.stdout.buffer.write(medium.manifest_bytes)
