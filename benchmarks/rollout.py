"""The kit's Ansible role over hosts in network namespaces: what more hosts cost, and what a loop over ssh costs."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.measure import Command, Samples, Side, seconds_of
from benchmarks.sections import Section, Sections, ratio_row, read_file, remove_folder
from benchmarks.table import Row, duration
from tests.factories_fleet import PORT, Fleet, FleetHost, make_fleet

COUNTS: Final = (1, 2, 5)
"""How many hosts are rolled out to, the fewest first: the others are compared with them."""

_PREFIX: Final = "/opt/bench"
_TOOLS: Final = ("ip", "mount", "nsenter", "unshare", "ssh", "scp", "ssh-keygen", "mmdebstrap")
_SSHD: Final = Path("/usr/sbin/sshd")
_HOSTS_FOLDER: Final = Path("/var/lib")  # where make_fleet has the hosts' files
_NEEDED: Final = 3  # a host holds the carried tar, the store that the release is linked to, and the unpacked wheels
_LOOP_GOAL: Final = 1.5
_LOOP: Final = """\
set -eu
for address in "$@"; do
  ssh $OPTIONS "root@$address" mkdir -p {prefix}.fleet
  scp -q -r $COPY_OPTIONS {kit} "root@$address:{prefix}.fleet/kit"
  scp -q $COPY_OPTIONS {bundle} "root@$address:{prefix}.fleet/"
  ssh $OPTIONS "root@$address" "sh {prefix}.fleet/kit/install.sh --kit {prefix}.fleet/kit {prefix}.fleet/{name} \\
    --prefix {prefix} && python3 -I -S {prefix}.fleet/kit/runtime.pyz verify --prefix {prefix} \\
    --trust {prefix}.fleet/kit/allowed_signers && rm {prefix}.fleet/{name}"
done
"""


def fleet(sections: Sections) -> Iterator[Row]:
    """One bundle to fresh hosts, all at once, by the role; and to as many, one after the other, by scp and ssh."""
    reason = _reason_to_skip() or _lack_of_space(sections.work.bundle, _HOSTS_FOLDER)
    if reason:
        yield from (_skipped(name, against, goal, reason) for name, against, goal in _goals())
        return
    bundle, kit = sections.work.bundle, next(sections.work.bundle.parent.glob("*.kit"))
    sections.bench.report(f"{COUNTS[-1]} hosts in namespaces")
    with make_fleet([f"host{number}" for number in range(1, COUNTS[-1] + 1)]) as made:
        found = sections.compare("fleet", tuple(_sides(made, bundle, kit)))
    yield from rows(found)


def rows(found: Samples) -> Iterator[Row]:
    """Return what follows from the samples, which have a label for each of :data:`COUNTS` and one for the loop."""
    one = seconds_of(found[_label(COUNTS[0])])
    for count in COUNTS[1:]:
        mine = seconds_of(found[_label(count)])
        yield Row(
            name=f"fleet-{count}",
            ours=f"{duration(mine)}, {duration(mine / count)} a host",
            against=f"{COUNTS[0]} host",
            peer=duration(one),
            value=mine / one,
            unit="x",
            sense="at most",
            goal=count,
        )
    ours, peer = (Side(label=label, commands=()) for label in (_label(COUNTS[-1]), _loop_label(COUNTS[-1])))
    yield ratio_row("fleet-loop", found, ours=ours, peer=peer, goal=_LOOP_GOAL, sense="at most")


def _label(count: int) -> str:
    return f"fleet: {count} hosts" if count > 1 else "fleet: 1 host"


def _loop_label(count: int) -> str:
    return f"fleet: for {count} hosts: scp, ssh install, ssh verify"


def _goals() -> Iterator[tuple[str, str, float]]:
    yield from ((f"fleet-{count}", f"{COUNTS[0]} host", count) for count in COUNTS[1:])
    yield "fleet-loop", _loop_label(COUNTS[-1]).partition(": ")[2], _LOOP_GOAL


def _sides(made: Fleet, bundle: Path, kit: Path) -> Iterator[Side]:
    hosts = tuple(made.hosts.values())
    prepare = partial(_clean, hosts, bundle)
    for count in COUNTS:
        command = _play_command(made, hosts[:count], bundle, kit)
        yield Side(label=_label(count), commands=(command,), prepare=prepare)
    yield Side(label=_loop_label(len(hosts)), commands=(_loop_command(made, hosts, bundle, kit),), prepare=prepare)


def _play_command(made: Fleet, hosts: Sequence[FleetHost], bundle: Path, kit: Path) -> Command:
    inventory = made.home / f"inventory-{len(hosts)}"
    lines = [f"{host.name} ansible_host={host.address} ansible_port={PORT} ansible_user=root" for host in hosts]
    inventory.write_text("\n".join(["[sealift]", *lines, ""]), encoding="utf-8")
    variables = {"sealift_bundle": bundle, "sealift_prefix": _PREFIX, "sealift_serial": "100%"}
    return (
        *_inside(made, ANSIBLE_CONFIG=str(made.home / "ansible.cfg")),
        *(made.python.parent / "ansible-playbook", "-i", inventory, kit / "ansible" / "fleet.yml"),
        *("--private-key", made.home / "client_key"),
        *(word for name, value in variables.items() for word in ("-e", f"{name}={value}")),
    )


def _loop_command(made: Fleet, hosts: Sequence[FleetHost], bundle: Path, kit: Path) -> Command:
    given = (f"IdentityFile={made.home / 'client_key'}", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
    common = " ".join(["-F /dev/null", *(f"-o {option}" for option in (*given, "LogLevel=ERROR"))])
    script = made.home / "loop.sh"
    quoted = {"kit": shlex.quote(str(kit)), "bundle": shlex.quote(str(bundle)), "name": shlex.quote(bundle.name)}
    script.write_text(_LOOP.format(prefix=_PREFIX, **quoted), encoding="utf-8")
    inside = _inside(made, OPTIONS=f"{common} -p {PORT}", COPY_OPTIONS=f"{common} -P {PORT}")
    return (*inside, "sh", script, *(host.address for host in hosts))


def _inside(made: Fleet, **variables: str) -> tuple[str | Path, ...]:
    """Return the words that run a command on the control machine, with nothing but these variables."""
    path = f"{made.python.parent}:{os.environ.get('PATH', os.defpath)}"
    environment = {"PATH": path, "HOME": str(made.home), "LANG": "C.UTF-8", **variables}
    settings = [f"{name}={value}" for name, value in environment.items()]
    return ("ip", "netns", "exec", made.space, "env", "-i", *settings)


def _clean(hosts: Sequence[FleetHost], bundle: Path) -> None:
    """Have hosts on which nothing was ever installed, and the bundle in the page cache."""
    for host in hosts:
        for path in (_PREFIX, f"{_PREFIX}.fleet"):
            remove_folder(host.path(path))
    read_file(bundle)


def _reason_to_skip() -> str:
    """Return why this machine can't be a fleet; empty when it can."""
    if os.geteuid() != 0:
        return "hosts in namespaces need root"
    lacking = [*(name for name in _TOOLS if shutil.which(name) is None), *([] if _SSHD.exists() else ["sshd"])]
    if lacking:
        return f"not on this host: {', '.join(lacking)}"
    words = (shutil.which("unshare") or "unshare", "--net", "--mount", "true")
    tried = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"no namespaces on this host: {tried.stderr.strip()}" if tried.returncode else ""


def _lack_of_space(bundle: Path, folder: Path) -> str:
    needed, free = COUNTS[-1] * _NEEDED * bundle.stat().st_size, shutil.disk_usage(folder).free
    return f"{folder}: {free / 1e9:.1f} GB are free, the hosts need {needed / 1e9:.1f} GB" if free < needed else ""


def _skipped(name: str, against: str, goal: float, note: str) -> Row:
    return Row(
        name=name, ours="-", against=against, peer="-", value=None, unit="x", sense="at most", goal=goal, note=note
    )


FLEET: Final[Mapping[str, Section]] = {"fleet": fleet}
"""Name -> section."""
