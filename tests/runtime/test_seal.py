"""The seal: what passes into a launched process, and what the guard refuses. It can't be removed: subprocesses."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from runtime.seal import OFFLINE_VARIABLES, cache_of, sealed_environment

PROJECT = Path(__file__).parents[2]


def guarded(code: str, *, allowed: str = "()") -> dict[str, object]:
    """Run code under the guard in a fresh interpreter; it puts results into ``out``."""
    lines = [
        "import json, socket, sys",
        "from runtime.seal import NetworkRefusedError, attempt_count, attempts, install_guard",
        f"install_guard({allowed})",
        "out = {}",
        textwrap.dedent(code),
        "print(json.dumps(out))",
    ]
    script = "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_environment_keeps_only_what_may_pass(tmp_path: Path) -> None:
    base = {
        "PATH": "/usr/bin",
        "LANG": "ko_KR.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "Asia/Seoul",
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "2",
        "HOME": "/home/operator",
        "HF_TOKEN": "secret",
        "OPENAI_API_KEY": "secret",
        "HTTPS_PROXY": "http://proxy",
        "no_proxy": "*",
        "PYTHONPATH": "/elsewhere",
        "PIP_INDEX_URL": "http://index",
        "UV_INDEX_URL": "http://index",
        "LD_PRELOAD": "/elsewhere.so",
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://mirror",
    }
    sealed = sealed_environment(base, home=tmp_path / "home", cache=tmp_path / "cache")
    kept = {key: base[key] for key in ("PATH", "LANG", "LC_ALL", "TZ", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    own = {
        "HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "cache/huggingface"),
        "HF_MODULES_CACHE": str(tmp_path / "cache/huggingface/modules"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache/torchinductor"),
        "TRITON_CACHE_DIR": str(tmp_path / "cache/triton"),
    }
    assert sealed == {**kept, **OFFLINE_VARIABLES, **own}
    assert sealed["HF_HUB_OFFLINE"] == "1"


def test_guard_refuses_connect_send_and_names_with_address_and_caller() -> None:
    code = """
        def knock(action):
            try:
                action()
            except NetworkRefusedError as error:
                return [str(error), isinstance(error, PermissionError)]
            return None
        stream, datagram = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
        sixth = socket.socket(socket.AF_INET6)
        out["connect"] = knock(lambda: stream.connect(("192.0.2.1", 443)))
        out["connect_ex"] = knock(lambda: stream.connect_ex(("192.0.2.1", 443)))
        out["sendto"] = knock(lambda: datagram.sendto(b"x", ("192.0.2.2", 53)))
        out["sendmsg"] = knock(lambda: datagram.sendmsg([b"x"], [], 0, ("192.0.2.3", 53)))
        out["six"] = knock(lambda: sixth.connect(("2001:db8::1", 80)))
        out["mapped"] = knock(lambda: sixth.connect(("::ffff:192.0.2.9", 80)))
        out["names"] = knock(lambda: socket.getaddrinfo("huggingface.co", 443))
        out["old"] = knock(lambda: socket.gethostbyname("huggingface.co"))
        out["count"] = attempt_count()
        out["attempts"] = [[item.event, item.address, item.callers[0]] for item in attempts()]
    """
    out = guarded(code)
    expected = [
        ("connect", "socket.connect", "192.0.2.1:443"),
        ("connect_ex", "socket.connect", "192.0.2.1:443"),
        ("sendto", "socket.sendto", "192.0.2.2:53"),
        ("sendmsg", "socket.sendmsg", "192.0.2.3:53"),
        ("six", "socket.connect", "2001:db8::1:80"),
        ("mapped", "socket.connect", "::ffff:192.0.2.9:80"),
        ("names", "socket.getaddrinfo", "huggingface.co:443"),
        ("old", "socket.gethostbyname", "huggingface.co"),
    ]
    for key, event, address in expected:
        found = out[key]
        assert isinstance(found, list), key
        message, is_permission_error = found
        assert message.startswith(f"sealed: {event} to {address} is refused (called from ")
        assert is_permission_error is True
    assert out["count"] == len(expected)
    recorded = out["attempts"]
    assert isinstance(recorded, list)
    assert [(event, address) for event, address, _ in recorded] == [(event, address) for _, event, address in expected]
    assert "<string>:" in recorded[0][2]
    assert recorded[0][2].endswith(" in <lambda>")
    assert "socket.py:" in recorded[6][2]


def test_guard_lets_loopback_unix_and_bind_through(tmp_path: Path) -> None:
    code = f"""
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        socket.create_connection(("localhost", port)).close()
        socket.create_connection(("127.0.0.1", port)).close()
        unix = socket.socket(socket.AF_UNIX)
        unix.bind({str(tmp_path / "s")!r})
        unix.listen()
        other = socket.socket(socket.AF_UNIX)
        other.connect({str(tmp_path / "s")!r})
        everywhere = socket.create_server(("0.0.0.0", 0))
        pair = socket.socketpair()
        pair[0].send(b"x")
        out["count"] = attempt_count()
        out["received"] = pair[1].recv(1).decode()
    """
    assert guarded(code) == {"count": 0, "received": "x"}


def test_an_opened_address_is_reachable_and_its_neighbour_is_not() -> None:
    code = """
        datagram = socket.socket(type=socket.SOCK_DGRAM)
        datagram.settimeout(0.01)
        for key, address in (("open", ("192.0.2.1", 9)), ("port", ("192.0.2.1", 10))):
            try:
                datagram.connect(address)
                out[key] = "passed"
            except NetworkRefusedError:
                out[key] = "refused"
            except OSError:
                out[key] = "passed"  # the guard let it go, the host has no route
    """
    assert guarded(code, allowed="{'192.0.2.1:9'}") == {"open": "passed", "port": "refused"}


def test_seal_process_changes_the_running_environment(tmp_path: Path) -> None:
    code = f"""
        import os
        from pathlib import Path
        from runtime.seal import guard_installed, seal_process
        os.environ["HF_TOKEN"] = "secret"
        seal_process(cache=Path({str(tmp_path)!r}))
        out["token"], out["offline"] = os.environ.get("HF_TOKEN"), os.environ["HF_HUB_OFFLINE"]
        out["guard"] = guard_installed()
    """
    assert guarded(code) == {"token": None, "offline": "1", "guard": True}


def test_caches_lie_where_they_were_given_or_are_gone_with_the_process(tmp_path: Path) -> None:
    assert cache_of({"XDG_CACHE_HOME": str(tmp_path / "given")}) == tmp_path / "given"
    code = "import os; from runtime.seal import cache_of; print(cache_of(os.environ), cache_of(os.environ).is_dir())"
    environment = {"TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, check=True)
    folder, is_there = done.stdout.decode().split()
    assert Path(folder).parent == tmp_path
    assert is_there == "True"
    assert not list(tmp_path.iterdir())
