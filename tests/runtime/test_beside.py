"""Two things at once, and programs that end with whoever started them."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from manifests.pieces import Stopped
from runtime.beside import beside
from runtime.layout import Prefix
from runtime.programs import run_program
from tests.factories_cli import ROOT


def wait_for(stop: threading.Event) -> str:
    if stop.wait(timeout=60):
        raise Stopped
    return "never stopped"


def fail(_stop: threading.Event) -> str:
    raise ValueError("the work's own")


def test_both_come_to_their_end() -> None:
    with beside(lambda _stop: threading.current_thread().name) as future:
        name = threading.current_thread().name
    assert future.result() != name


def test_the_block_fails_and_ends_the_work() -> None:
    with pytest.raises(KeyError, match="mine"), beside(wait_for) as future:
        raise KeyError("mine")
    assert isinstance(future.exception(), Stopped)


def test_the_work_fails_and_the_block_asks_for_it() -> None:
    with pytest.raises(ValueError, match="the work's own"), beside(fail) as future:
        future.result()


def test_the_work_fails_and_the_block_comes_to_its_end() -> None:
    done = []
    with pytest.raises(ValueError, match="the work's own"), beside(fail) as future:
        done.append(future.exception(timeout=60))
    assert isinstance(done[0], ValueError)


def test_the_block_s_own_error_comes_first() -> None:
    def late(future: "Future[str]") -> None:
        assert isinstance(future.exception(timeout=60), ValueError)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"), beside(fail) as future:
        late(future)


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    (tmp_path / "var" / "run").mkdir(parents=True)
    return Prefix(path=tmp_path)


def test_a_program_s_words_and_surroundings(prefix: Prefix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    code = "import os, sys; print(os.getcwd(), os.environ.get('SECRET'), os.environ['HOME']); sys.exit('no \\udcff')"
    done = run_program(prefix, [sys.executable, "-I", "-c", code])
    assert (done.returncode, done.stdout) == (1, f"{prefix.path} None {prefix.var / 'run'}\n")
    assert done.stderr == "no \\udcff\n"


def test_a_program_that_is_called_off(prefix: Prefix) -> None:
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    code = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(100)"
    with pytest.raises(Stopped):
        run_program(prefix, [sys.executable, "-I", "-c", code], stop=stop)
    pid = (prefix.path / "pid").read_text() if (prefix.path / "pid").exists() else ""
    assert not pid or not Path("/proc", pid).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_program_ends_with_a_killed_parent(prefix: Prefix) -> None:
    read, write = os.pipe()
    code = (
        "import sys; from pathlib import Path\n"
        "from runtime.layout import Prefix\n"
        "from runtime.programs import run_program\n"
        "print('up', flush=True)\n"
        "run_program(Prefix(path=Path(sys.argv[1])), ['/bin/sh', '-c', f'exec sleep 100 <&{sys.argv[2]}'])\n"
    )
    command = [sys.executable, "-c", code, str(prefix.path), str(write)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, pass_fds=[write]) as parent:
        os.close(write)
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        os.kill(parent.pid, signal.SIGKILL)
    # The pipe's other end is open as long as any of the two lives.
    assert os.read(read, 1) == b""
    os.close(read)
