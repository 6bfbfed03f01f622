"""Fault injection: break a stage of the real pipeline, repeat it, and compare every byte.

Run: make faults, or python -m tests.faults.campaign --injections 200 --seed 0 --jobs 2

The pipeline runs on few images with few steps. Each injection forces one stage to run anew with one
of FAULTS at a random moment, then repeats it without, and demands: the bytes of the undisturbed run
in all outputs, one line instead of a traceback, no process and no temporary file left, and all of
it in MLflow after ``python -m stages.tracking``. Linux only.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import numpy as np

from tests.helpers.projects import make_project

STAGES = (
    "preprocess",
    "train_clean",
    "attack_eval@clean",
    "train_adv",
    "attack_eval@adv",
    "evaluate",
)
TEMPORARY = ("*.part", "*.damaged", "*.tmp")
TIMEOUT = 300  # seconds: a stage that takes 15 has hung


@dataclass
class Injection:
    """One fault: where, which, and the random numbers that place it."""

    number: int
    stage: str
    fault: str
    rng: np.random.Generator
    project: Path
    seconds: float  # that the stage takes undisturbed

    def start(self, *command: str, limit: int | None = None, **env: str) -> subprocess.Popen:
        """A command in the project, in a process group of its own.

        ``limit`` is the size in bytes that no file may exceed.
        """

        def before() -> None:
            if limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        log = (self.project / ".dvc/tmp/log").open(
            "ab"
        )  # not a pipe, which a process that is left over would keep open
        settings = {
            "MLFLOW_TRACKING_URI": "",
            "OMP_NUM_THREADS": "2",
            "PYTHONWARNINGS": "ignore",
            **env,
        }
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.project,
            env=os.environ | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=before,
        )

    def stage_command(self) -> tuple[str, ...]:
        """The stage, whether its outputs are up to date or not, and no other."""
        return ("dvc", "repro", "-sf", self.stage)

    def run(self, limit: int | None = None, **env: str) -> int:
        """Run the stage; exit status."""
        return wait(self.start(*self.stage_command(), limit=limit, **env))

    def some_time(self) -> float:
        """Seconds until a random moment of the stage."""
        return float(self.rng.uniform(0, self.seconds))


def wait(process: subprocess.Popen) -> int:
    """Exit status; a process that hangs is an error."""
    try:
        return process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"hangs for more than {TIMEOUT} s") from None


def processes_in(project: Path) -> dict[int, str]:
    """Pid -> command line of the processes in the project's folder or below it.

    Those of queued experiments lie below it.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (
                (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            if (folder / "cwd").resolve().is_relative_to(project) and command:
                found[int(folder.name)] = command
    return found


def kill(injection: Injection, number: int, whom: str) -> None:
    """A signal to the stage (and its workers), to dvc, or to both as Ctrl-C does."""
    process = injection.start(*injection.stage_command())
    time.sleep(injection.some_time())
    if whom == "both":
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    else:
        for pid, command in processes_in(injection.project).items():
            if ("stages." in command) == (whom == "stage"):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
    wait(process)


def full_disk(injection: Injection) -> None:
    """No file may grow beyond a random size."""
    injection.run(limit=int(10 ** injection.rng.uniform(2, 7.5)))


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[None]:
    """A tiny file system in place of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def full_folder(injection: Injection) -> None:
    """Checkpoints or the cache of decoded images on a disk of their own, too small."""
    folder = injection.project / str(injection.rng.choice([".ckpt", ".cache"]))
    with tmpfs(folder, int(10 ** injection.rng.uniform(4, 7))):
        injection.run()


def read_only(injection: Injection) -> None:
    """A folder without write permission; for root, who may write everywhere, a read-only mount."""
    folder = injection.project / str(
        injection.rng.choice([".ckpt", ".cache", "metrics", "plots", "data"])
    )
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    try:
        injection.run()
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def failing_call(injection: Injection) -> None:
    """A call of os.replace or os.fsync says EIO."""
    fault = f"{injection.rng.choice(['replace', 'fsync'])}:{injection.rng.integers(1, 12)}"
    injection.run(FAULT=fault, PYTHONPATH=str(Path(__file__).parent))


def wrong_clock(injection: Injection) -> None:
    """The clock jumps by up to ten years."""
    injection.run(
        FAULT=f"clock:{injection.rng.uniform(-3e8, 3e8):.0f}", PYTHONPATH=str(Path(__file__).parent)
    )


def two_at_once(injection: Injection) -> None:
    """The same stage twice at about the same time: by DVC, or without it."""
    command = injection.stage_command()
    if injection.rng.random() < 0.5:
        name, _, item = injection.stage.partition("@")
        command = (f"stages.{name}", *filter(None, [item]))
    first = injection.start(*command)
    time.sleep(float(injection.rng.uniform(0, 2)))
    second = injection.start(*command)
    codes = wait(first), wait(second)
    assert 0 in codes, f"expected one of the two to succeed, got exit statuses {codes}"


def damaged_state(injection: Injection) -> None:
    """Killed, then what it keeps for a rerun is damaged."""
    kill(injection, signal.SIGKILL, "both")
    files = [
        f
        for name in (".ckpt", ".cache")
        for f in (injection.project / name).rglob("*")
        if f.suffix in (".pt", ".npz")
    ]
    for file in files[:20]:
        content = bytearray(file.read_bytes())
        place = int(injection.rng.integers(len(content)))
        content[place] ^= 1 << int(injection.rng.integers(8))
        file.write_bytes(content[:place] if injection.rng.random() < 0.5 else content)


def no_server(injection: Injection) -> None:
    """MLFLOW_TRACKING_URI names a port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert injection.run(MLFLOW_TRACKING_URI=uri) == 0, (
        "expected the stage to succeed without MLflow"
    )


def hanging_server(injection: Injection) -> None:
    """MLflow accepts the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert injection.run(MLFLOW_TRACKING_URI=uri) == 0, (
            "expected the stage to succeed without MLflow"
        )


def failing_server(injection: Injection) -> None:
    """MLflow answers 500."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        assert injection.run(MLFLOW_TRACKING_URI=uri) == 0, (
            "expected the stage to succeed without MLflow"
        )
        server.shutdown()


def killed_server(injection: Injection) -> None:
    """MLflow's server is killed at a random moment of the stage."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    uri, folder = f"http://127.0.0.1:{port}", tempfile.mkdtemp()
    store = (
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        folder,
    )
    server = injection.start(
        "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1", *store
    )
    try:
        wait_until(lambda: answers(f"{uri}/health"))
        stage = injection.start(*injection.stage_command(), MLFLOW_TRACKING_URI=uri)
        time.sleep(injection.some_time())
        os.killpg(server.pid, signal.SIGKILL)
        assert wait(stage) == 0, "expected the stage to succeed without MLflow"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        shutil.rmtree(folder)


def killed_queue(injection: Injection) -> None:
    """Kill two of DVC's queue workers, on a new queue, and all that they started.

    Then the experiments are queued anew. They change a parameter of evaluate, whichever stage the
    injection is about. DVC may call the killed ones running for ever.
    """
    shutil.rmtree(injection.project / ".dvc/tmp/exps", ignore_errors=True)
    samples = 1000 + 2 * injection.number
    queue = ("dvc", "exp", "run", "--queue", "-S", f"evaluate.bootstrap={samples},{samples + 1}")
    for kills in (True, False):
        assert wait(injection.start(*queue)) == 0, "expected experiments to be queued"
        assert wait(injection.start("dvc", "queue", "start", "-j", "2")) == 0, (
            "expected queue workers to start"
        )
        if kills:
            time.sleep(float(injection.rng.uniform(1, 12)))
            for pid in processes_in(injection.project):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait(injection.start("dvc", "queue", "remove", "--all"))
    wait_until(lambda: queue_status(injection.project).count("Success") == 2)


def queue_status(project: Path) -> str:
    """DVC's table of queued experiments."""
    command = [sys.executable, "-m", "dvc", "queue", "status"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout


def answers(url: str) -> bool:
    """Whether a server answers 200."""
    try:
        with urlopen(url, timeout=1) as response:  # noqa: S310  # our own server
            return response.status == 200
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll; an error where it never comes."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, f"expected it within {TIMEOUT} s"
        time.sleep(0.3)


def locked_database(injection: Injection) -> None:
    """The process that holds MLflow's database is killed in the middle."""
    process = injection.start(*injection.stage_command())
    while process.poll() is None and not (injection.project / "mlflow.db-journal").exists():
        time.sleep(0.001)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    wait(process)


FAULTS: dict[str, Callable[[Injection], None]] = {
    **{
        f"{signal.Signals(number).name} to {whom}": lambda injection, number=number, whom=whom: (
            kill(injection, number, whom)
        )
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        for whom in ("stage", "dvc", "both")
    },
    "full disk": full_disk,
    "full .ckpt or .cache": full_folder,
    "read-only folder": read_only,
    "EIO": failing_call,
    "clock jumps": wrong_clock,
    "two at once": two_at_once,
    "killed, state damaged": damaged_state,
    "no MLflow server": no_server,
    "hanging MLflow server": hanging_server,
    "failing MLflow server": failing_server,
    "MLflow server killed": killed_server,
    "killed while it writes to MLflow": locked_database,
    "SIGKILL to queue workers": killed_queue,
}
MOUNTS = ("full .ckpt or .cache", "read-only folder")  # only who may mount can try these


def inject(injection: Injection, reference: bytes) -> list[str]:
    """Break the stage, repeat it; what is wrong afterwards."""
    log, problems = injection.project / ".dvc/tmp/log", []
    log.write_bytes(b"")
    try:
        FAULTS[injection.fault](injection)
        end = time.monotonic() + 15
        while (left := processes_in(injection.project)) and time.monotonic() < end:
            time.sleep(0.1)
        problems += [f"still running: {command}" for command in left.values()]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        if injection.run() != 0:
            problems.append("the repetition failed")
        if wait(injection.start("stages.tracking")) != 0:
            problems.append("stages.tracking failed")
    except AssertionError as error:
        problems.append(str(error))
    if "Traceback" in log.read_text(errors="replace"):
        problems.append("traceback")
    if (injection.project / "dvc.lock").read_bytes() != reference:
        problems.append("other bytes")
    problems += [f"{name} is left" for name in leftovers(injection.project)]
    problems += mlflow_problems(injection.project)
    return problems


def leftovers(project: Path) -> list[str]:
    """Files that no run leaves that ended well."""
    temporary = [
        f
        for pattern in TEMPORARY
        for f in project.rglob(pattern)
        if ".git" not in f.parts and ".venv" not in f.parts
    ]
    states = list((project / ".ckpt").rglob("*.pt"))
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True, check=True
    ).stdout
    return [f.relative_to(project).as_posix() for f in temporary + states] + changed.splitlines()


def mlflow_problems(project: Path) -> list[str]:
    """Every stage has a finished run."""
    code = (
        "import json; from stages.tracking.mlflow_runs import find\n"
        "runs = [run for run in find({}) if run.info.status == 'FINISHED']\n"
        "stages = {run.data.tags['stage'] for run in runs if 'content' in run.data.tags}\n"
        "print(json.dumps(sorted(stages)))"
    )
    env = os.environ | {"MLFLOW_TRACKING_URI": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr[-200:]
    return [] if found == sorted(STAGES) else [f"MLflow has {found}"]


def make_pristine(project: Path) -> None:
    """A finished small pipeline, committed."""
    make_project(project)
    subprocess.run(["git", "add", "-A"], cwd=project, check=True)
    author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *author, "commit", "-qm", "Results"], cwd=project, check=True)


def copy_project(pristine: Path, project: Path) -> Path:
    """Without MLflow's database, in which the folder's path is."""
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(
        pristine, project, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts")
    )
    return project.resolve()


def durations(project: Path) -> dict[str, float]:
    """Seconds that each stage takes, with dvc's start."""
    taken = {}
    for stage in STAGES:
        start = time.monotonic()
        injection = Injection(0, stage, "", np.random.default_rng(0), project, 0)
        assert injection.run() == 0, stage
        taken[stage] = time.monotonic() - start
    return taken


def may_mount() -> bool:
    """Whether this user may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "none", folder], capture_output=True, check=False
        )
        return (
            done.returncode == 0 and subprocess.run(["umount", folder], check=False).returncode == 0
        )


def campaign(injections: int, seed: int, jobs: int, folder: Path) -> int:
    """Run it; prints a line for each injection and a table of all.

    Returns the number of injections with a problem.
    """
    pristine = folder / "pristine"
    if not pristine.exists():
        make_pristine(pristine)
    projects = [copy_project(pristine, folder / str(job)) for job in range(jobs)]
    seconds, reference = durations(projects[0]), (pristine / "dvc.lock").read_bytes()
    faults = [fault for fault in FAULTS if fault not in MOUNTS or may_mount()]
    if missing := FAULTS.keys() - set(faults):
        print(f"not tried, for this user may not mount: {', '.join(sorted(missing))}", flush=True)
    tried: Counter[str] = Counter()
    failed: Counter[str] = Counter()

    def run_share(job: int) -> None:
        for number in range(job, injections, jobs):
            rng = np.random.default_rng([seed, number])
            fault = faults[number % len(faults)]
            stage = str(rng.choice(STAGES))
            injection = Injection(number, stage, fault, rng, projects[job], seconds[stage])
            problems = inject(injection, reference)
            tried[fault] += 1
            failed[fault] += bool(problems)
            print(f"{number:4d}  {stage:18s} {fault:34s} {'; '.join(problems) or 'ok'}", flush=True)
            if problems:
                shutil.copy(projects[job] / ".dvc/tmp/log", folder / f"{number}.log")
                copy_project(pristine, projects[job])

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run_share, range(jobs)))
    print("\n| fault | injections | with a loss |\n|---|---|---|")
    for fault in sorted(tried):
        print(f"| {fault} | {tried[fault]} | {failed[fault]} |")
    print(f"| all | {tried.total()} | {failed.total()} |", flush=True)
    return failed.total()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--injections", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="projects at the same time")
    parser.add_argument(
        "--folder", type=Path, help="where to work; kept. Default: a temporary folder"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(
            bool(
                campaign(
                    arguments.injections,
                    arguments.seed,
                    arguments.jobs,
                    arguments.folder or Path(temporary),
                )
            )
        )
