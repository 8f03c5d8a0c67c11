"""A fleet on one machine: hosts that are network namespaces with an sshd each, in a Debian of their own, and Ansible.

Nothing leads out: the control machine is a namespace too, with a bridge to which each host is connected, and no route.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from tests.factories_closed import program
from tests.factories_langchain import peer_venv
from tests.roots import bare_root

ANSIBLE: Final = ("ansible-core>=2.18,<2.20",)
PORT: Final = 2222
GATEWAY: Final = "10.231.7.1"
SSHD: Final = """\
Port {port}
ListenAddress {address}
HostKey {home}/host_key
AuthorizedKeysFile {home}/client_key.pub
ChrootDirectory {root}
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
MaxSessions 20
"""
CONFIG: Final = """\
[defaults]
host_key_checking = False
retry_files_enabled = False
interpreter_python = /usr/bin/python3
forks = 5
nocows = 1
[ssh_connection]
pipelining = True
control_path_dir = {home}/cp
ssh_args = -F /dev/null -o ControlMaster=auto -o ControlPersist=20 -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR
"""


def require_fleet_tools() -> None:
    """Fail the test where this machine can't make hosts, naming the packages."""
    for tool in ("ip", "mount", "nsenter", "ssh", "ssh-keygen"):
        program(tool)
    assert Path("/usr/sbin/sshd").exists(), "the fleet tests need sshd: apt-get install openssh-server"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetHost:
    """One host: its name in the inventory, its address, the folder that is its ``/``, and what mounts are on it."""

    name: str
    space: str
    address: str
    root: Path

    def path(self, path: str) -> Path:
        """Return where an absolute path of the host lies on this machine."""
        return self.root / path.lstrip("/")

    def mount(self, path: str, *options: str) -> None:
        """Mount something on a folder of the host."""
        self.path(path).mkdir(parents=True, exist_ok=True)
        subprocess.run([program("mount"), *options, str(self.path(path))], check=True)

    def unmount(self, path: str) -> None:
        """Undo it."""
        subprocess.run([program("umount"), str(self.path(path))], check=True)


@dataclass(slots=True, kw_only=True)
class Played:
    """What a playbook did: exit code, all output, and per host Ansible's own counts."""

    code: int
    output: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def reasons(self) -> dict[str, str]:
        """Return why each host failed, as the report names it."""
        _, _, report = self.output.partition("Name the hosts that failed")
        found = re.findall(r'fatal: \[(\w+)\]: FAILED! => \{"changed": false, "msg": "(.*)"\}', report)
        return {host: reason.replace("\\n", "\n").replace('\\"', '"') for host, reason in found}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The control machine and its hosts."""

    home: Path
    space: str
    hosts: dict[str, FleetHost]
    python: Path

    def play(self, playbook: Path, inventory: str, *words: str) -> Played:
        """Run a playbook on the control machine.

        Args:
            playbook: Its file.
            inventory: More variables, by lines of ``host key=value`` after which the address is added.
            words: More words of ``ansible-playbook``.
        """
        variables = {line.split()[0]: line.split(maxsplit=1)[1:] for line in inventory.splitlines() if line.strip()}
        rows = [
            " ".join([name, f"ansible_host={host.address}", f"ansible_port={PORT}", *variables.get(name, [])])
            for name, host in self.hosts.items()
        ]
        (self.home / "inventory").write_text("[sealift]\n" + "\n".join(rows) + "\n", encoding="utf-8")
        command = [self.python.parent / "ansible-playbook", "-i", self.home / "inventory", playbook, *words]
        command += ["--private-key", self.home / "client_key"]
        done = subprocess.run(
            [program("ip"), "netns", "exec", self.space, *map(str, command)],
            env={
                "PATH": f"{self.python.parent}:{os.environ['PATH']}",
                "HOME": str(self.home),
                "LANG": "C.UTF-8",
                "ANSIBLE_CONFIG": str(self.home / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
            },
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        found = re.findall(r"^(\w+) +: (ok=.*?) *$", done.stdout, re.MULTILINE)
        counts = {
            host: {key: int(value) for key, value in (pair.split("=") for pair in line.split())} for host, line in found
        }
        return Played(code=done.returncode, output=done.stdout + done.stderr, counts=counts)

    @contextlib.contextmanager
    def serve(self, folder: Path) -> Iterator[str]:
        """Serve a folder to the hosts from the control machine; yield its address."""
        command = [program("nsenter"), f"--net=/run/netns/{self.space}", str(self.python), "-I", "-m", "http.server"]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(
            [*command, "--bind", GATEWAY, "--directory", str(folder), "8000"], stdout=quiet, stderr=quiet
        ) as server:
            try:
                yield f"http://{GATEWAY}:8000"
            finally:
                server.kill()


@contextlib.contextmanager
def make_fleet(names: Sequence[str]) -> Iterator[Fleet]:
    """Yield a fleet of hosts with ``names``; everything is gone afterwards, whatever happened."""
    require_fleet_tools()
    ansible = peer_venv("ansible", ANSIBLE)
    # sshd refuses a ChrootDirectory below a folder that others may write to, such as /tmp.
    home = Path(tempfile.mkdtemp(prefix="sealift-fleet-", dir="/var/lib"))
    home.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, home)
        space = f"sl{os.getpid()}"
        _control(space, stack)
        for key in ("host_key", "client_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / key)
        (home / "ansible.cfg").write_text(CONFIG.format(home=home), encoding="utf-8")
        hosts = {name: _host(name, number, home, space, stack) for number, name in enumerate(names, start=10)}
        yield Fleet(home=home, space=space, hosts=hosts, python=ansible.python)


def _control(space: str, stack: contextlib.ExitStack) -> None:
    _run("ip", "netns", "add", space)
    stack.callback(_end_space, space)
    _inside(space, "ip", "link", "set", "lo", "up")
    _inside(space, "ip", "link", "add", "br0", "type", "bridge")
    _inside(space, "ip", "address", "add", f"{GATEWAY}/24", "dev", "br0")
    _inside(space, "ip", "link", "set", "br0", "up")


def _host(name: str, number: int, home: Path, control: str, stack: contextlib.ExitStack) -> FleetHost:
    space, address, root = f"{control}h{number}", f"10.231.7.{number}", home / name
    _run("ip", "netns", "add", space)
    stack.callback(_end_space, space)
    end = f"e{number}"
    _run("ip", "-n", control, "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
    _run("ip", "-n", control, "link", "set", end, "master", "br0", "up")
    _inside(space, "ip", "link", "set", "lo", "up")
    _inside(space, "ip", "address", "add", f"{address}/24", "dev", "eth0")
    _inside(space, "ip", "link", "set", "eth0", "up")
    _mount_root(root, home / f"{name}.upper", home / f"{name}.work", stack)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's own, outside of the roots
    config = home / f"{name}.sshd"
    config.write_text(SSHD.format(port=PORT, address=address, home=home, root=root), encoding="utf-8")
    with (home / f"{name}.log").open("wb") as log:
        daemon = subprocess.Popen(
            # `ip netns exec` would give it a mount namespace too, where later mounts on its root are not seen.
            [program("nsenter"), f"--net=/run/netns/{space}", "/usr/sbin/sshd", "-D", "-e", "-f", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    stack.callback(daemon.wait)
    stack.callback(_end_processes, space)
    return FleetHost(name=name, space=space, address=address, root=root)


def _mount_root(root: Path, upper: Path, work: Path, stack: contextlib.ExitStack) -> None:
    for folder in (root, upper, work):
        folder.mkdir()
    options = f"lowerdir={bare_root()},upperdir={upper},workdir={work}"
    _run("mount", "-t", "overlay", "overlay", "-o", options, root)
    stack.callback(_run, "umount", "--recursive", "--lazy", root)
    root.chmod(0o755)
    _run("mount", "-t", "proc", "proc", root / "proc")
    _run("mount", "-t", "tmpfs", "-o", "mode=755,size=1m", "tmpfs", root / "dev")
    for name, minor in (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)):
        _run("mknod", "-m", "666", root / "dev" / name, "c", "1", str(minor))


def _end_space(space: str) -> None:
    _end_processes(space)
    _run("ip", "netns", "delete", space)


def _end_processes(space: str) -> None:
    """End what runs in a namespace; a session that lives on would keep the namespace and its link."""
    for _ in range(50):
        pids = _pids(space)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not pids:
            return
        time.sleep(0.05)


def _pids(space: str) -> list[int]:
    words = [program("ip"), "netns", "pids", space]
    return [int(pid) for pid in subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()]


def _inside(space: str, *words: str | Path) -> None:
    _run("ip", "netns", "exec", space, *words)


def _run(*words: str | Path) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"


class Killer:
    """Kills the first install on a host, as soon as its store holds a file."""

    def __init__(self, host: FleetHost, prefix: str) -> None:
        self.host, self.prefix = host, prefix
        self.killed = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=10)

    def _watch(self) -> None:
        store = self.host.path(self.prefix) / "store" / "sha256"
        while not self._ended.wait(0.005):
            if store.is_dir() and any(path.is_file() for path in store.rglob("*")) and (pid := self._install()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.killed = pid
                    return

    def _install(self) -> int | None:
        for pid in _pids(self.host.space):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"install" in words and self.prefix.encode() in words:
                    return pid
        return None


def other_python() -> Path | None:
    """Return the folder of a Python of this machine that isn't the one of the tests, and that the roots can run."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    roots = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [path for minor in (12, 13) for path in sorted(roots.glob(f"3.{minor}.*")) if f"3.{minor}" != version]
    return next((path for path in found if (path / "bin/python3").exists()), None)
