"""Start an NDIF server on this machine, wait until it answers, and stop all of it at the end.

    python examples/ndif/serve.py [--cpu] [--port 8001] [--folder .ndif] [--keys FILE]

Runs in the foreground; prints ``ready http://127.0.0.1:PORT`` when requests are taken. Ctrl-C, a
SIGTERM or a failure stops every process that was started, by its id. Needs ``setup.sh`` first.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
MARK = "NDIF_STARTED_BY"
RAY_HOST = "127.0.0.2"  # Ray rewrites 127.0.0.1 to the machine's network address
GIB = 2**30


class Failed(Exception):
    """Something the server needs did not start."""


def free_ports(n: int) -> list[int]:
    """Ports nobody listens on now."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def ours(mark: str) -> list[int]:
    """Ids of the living processes that carry our mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    return [pid for pid in processes() if wanted in read(pid, "environ").split(b"\0")]


def below(roots: set[int]) -> set[int]:
    """Ids of processes and of all they started; Ray's rename themselves and lose the mark."""
    found = set(roots)
    parents = {
        pid: int(stat.rpartition(b")")[2].split()[1])
        for pid in processes()
        if (stat := read(pid, "stat"))
    }
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def processes() -> list[int]:
    """Ids of all processes but this one."""
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in found if pid != os.getpid()]


def read(pid: int, what: str) -> bytes:
    """What the system says of a process; nothing if it is gone, or not ours to look at."""
    try:
        return (Path("/proc") / str(pid) / what).read_bytes()
    except OSError:
        return b""


def alive(pid: int) -> bool:
    """Whether a process exists and is not only waiting to be collected."""
    stat = read(pid, "stat")
    return bool(stat) and stat.rpartition(b")")[2].split()[0] != b"Z"


class Server:
    """The processes of one NDIF server, each with its log in ``folder``."""

    def __init__(
        self,
        folder: Path,
        venv: Path,
        port: int,
        *,
        cpu: bool,
        timeout: float,
        keys: Path | None = None,
    ) -> None:
        self.folder = folder
        self.keys = keys
        self.bin = venv / "bin"
        self.cpu = cpu
        self.timeout = timeout
        self.mark = uuid.uuid4().hex
        self.children: dict[str, subprocess.Popen] = {}
        names = ("redis", "store", "gcs", "client", "objects", "dashboard", "agent", "metrics")
        names += ("agent_http", "runtime_env", "node")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True), api=port)

    @property
    def address(self) -> str:
        """Where clients reach it."""
        return f"http://127.0.0.1:{self.ports['api']}"

    def environment(self) -> dict[str, str]:
        """The settings of every process; what the caller has set wins."""
        ports = self.ports
        made = {
            MARK: self.mark,
            "PATH": f"{self.bin}{os.pathsep}{os.environ.get('PATH', '')}",
            "NDIF_REDIS_URL": f"redis://127.0.0.1:{ports['redis']}",
            "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{ports['store']}",
            "NDIF_OBJECT_STORE_ACCESS_KEY": "local",
            "NDIF_OBJECT_STORE_SECRET_KEY": "local",
            "NDIF_RAY_ADDRESS": f"ray://{RAY_HOST}:{ports['client']}",
            "NDIF_RAY_TEMP_DIR": str(self.ray_folder),
            "NDIF_API_PORT": str(ports["api"]),
            "NDIF_MINIMUM_DEPLOYMENT_TIME_SECONDS": "0",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",  # not with a token that another cluster left here
            "NO_PROXY": f"127.0.0.1,{RAY_HOST},localhost",
        }
        if self.cpu:
            made |= {
                "NDIF_DEFAULT_MODEL_ACTOR_CLASS": "cpu_actors.CpuModelActor",
                "NDIF_DEFAULT_DTYPE": "float32",
                "NDIF_DEFAULT_PADDING_BIAS": "0",
                "NDIF_SANDBOX_POOL_SIZE": "1",
                "OMP_NUM_THREADS": "1",
                "RAY_worker_niceness": "0",  # else whatever else runs comes first
            }
        else:
            sandboxed = "ndif.services.ray.sandbox.model.SandboxModelActor"
            made["NDIF_DEFAULT_MODEL_ACTOR_CLASS"] = sandboxed
        kept = {k: v for k, v in os.environ.items() if k not in ("PATH", "RAY_ADDRESS", MARK)}
        # This folder's modules are found whatever else the caller has on the path.
        path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
        return {**made, **kept, "PATH": made["PATH"], "PYTHONPATH": path, MARK: self.mark}

    @property
    def ray_folder(self) -> Path:
        """Short, as Ray puts sockets in it, whose names have at most 107 characters."""
        return Path("/tmp") / f"ndif-{self.mark[:8]}"

    def spawn(self, name: str, *command: str, **settings: str) -> subprocess.Popen:
        """Start a process whose output goes to its log."""
        env = {**self.environment(), **settings}
        with (self.folder / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                command, stdout=log, stderr=log, env=env, start_new_session=True
            )
        self.children[name] = child
        return child

    def wait(self, what: str, ready, *children: str) -> None:
        """Wait until ``ready()``; a child that ends before is a failure."""
        seconds = self.timeout
        until = time.monotonic() + seconds
        while not ready():
            for name in children:
                if self.children[name].poll() is not None:
                    raise Failed(f"{name} ended before it was ready. {self.tail(name)}")
            if time.monotonic() > until:
                raise Failed(f"{what} did not answer in {seconds:.0f} s. {self.tail(children[0])}")
            time.sleep(0.2)

    def tail(self, name: str) -> str:
        """The end of a log."""
        path = self.folder / f"{name}.log"
        lines = path.read_text(errors="replace").splitlines()[-12:]
        return f"The end of {path}:\n  " + "\n  ".join(lines)

    def start(self) -> None:
        """Start redis, object store, Ray, controller and API, in this order."""
        ports, python = self.ports, str(self.bin / "python")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ray_folder.mkdir(parents=True)
        loopback = ("--bind", "127.0.0.1", "--port", str(ports["redis"]), "--save", "")
        self.spawn("redis", "redis-server", *loopback, "--dir", str(self.folder))
        store = ("-H", "127.0.0.1", "-p", str(ports["store"]))
        self.spawn("store", python, "-m", "moto.server", *store)
        self.start_ray()
        self.wait("redis", lambda: listens("127.0.0.1", ports["redis"]), "redis")
        self.wait("the object store", lambda: listens("127.0.0.1", ports["store"]), "store")
        self.wait("Ray", lambda: listens(RAY_HOST, ports["client"]), "ray")
        controller = self.spawn(
            "controller", python, "-m", "ndif.services.ray.deployments.controller.controller"
        )
        self.wait("the controller", lambda: controller.poll() is not None, "ray")
        if controller.returncode:
            raise Failed(f"the controller did not start. {self.tail('controller')}")
        self.start_api()

    def start_ray(self) -> None:
        """Start a Ray head that stays in the foreground."""
        ports = self.ports
        if self.cpu:
            resources = {"head": 10, "cuda_memory_bytes": 4 * GIB, "cpu_memory_bytes": 4 * GIB}
            amount = ("--num-cpus=16", "--num-gpus=1", f"--object-store-memory={GIB // 4}")
        else:
            asked = [str(self.bin / "python"), "-m", "ndif.services.ray.resources", "--head"]
            env = self.environment()
            resources = json.loads(subprocess.check_output(asked, env=env, text=True))
            amount = ()
        self.spawn(
            "ray",
            *(str(self.bin / "ray"), "start", "--head", "--block", *amount),
            f"--resources={json.dumps(resources)}",
            f"--node-ip-address={RAY_HOST}",
            f"--port={ports['gcs']}",
            f"--ray-client-server-port={ports['client']}",
            f"--object-manager-port={ports['objects']}",
            f"--node-manager-port={ports['node']}",
            "--include-dashboard=true",  # its state API says which actors live
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={ports['dashboard']}",
            f"--dashboard-agent-grpc-port={ports['agent']}",
            f"--dashboard-agent-listen-port={ports['agent_http']}",
            f"--runtime-env-agent-port={ports['runtime_env']}",
            f"--metrics-export-port={ports['metrics']}",
            f"--temp-dir={self.ray_folder}",
            "--disable-usage-stats",
        )

    def start_api(self) -> None:
        """Start the API, and wait until it is connected to Ray."""
        app = "ndif.services.api.app:app" if self.keys is None else "file_keys:app"
        api = ("--config", "python:ndif.services.api.gunicorn_conf", app)
        keyed = {} if self.keys is None else {"NDIF_KEYS_FILE": str(self.keys)}
        bind = ("--bind", f"127.0.0.1:{self.ports['api']}")
        # With a .save() on every object (nnsight's default), uploads over 1 MiB break in anyio.
        config = self.folder / "nnsight-of-the-api.yaml"
        config.write_text("APP: {PYMOUNT: false}\n")
        gunicorn = str(self.bin / "gunicorn")
        self.spawn("api", gunicorn, *bind, *api, NNSIGHT_CONFIG=str(config), **keyed)
        self.wait("the API", lambda: answers(f"{self.address}/connected"), "api")
        pids = {name: child.pid for name, child in self.children.items()}
        (self.folder / "pids.json").write_text(json.dumps(pids))

    def watch(self) -> None:
        """Stay until a process ends that should not; an API that ends is started again."""
        while True:
            for name in ("redis", "store", "ray"):
                if self.children[name].poll() is not None:
                    raise Failed(f"{name} ended. {self.tail(name)}")
            if self.children["api"].poll() is not None:
                end_group(self.children["api"].pid)  # its dispatcher outlives it
                self.start_api()
                sys.stdout.write("restarted the API\n")
                sys.stdout.flush()
            time.sleep(0.5)

    def stop(self) -> None:
        """End every process that was started, asking first."""
        started = below({child.pid for child in self.children.values()} | {*ours(self.mark)})
        for name in ("api", "ray", "store", "redis"):
            if (child := self.children.get(name)) is not None and child.poll() is None:
                child.terminate()
        for sign, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            until = time.monotonic() + seconds
            while (left := [*filter(alive, started)]) and time.monotonic() < until:
                for child in self.children.values():
                    child.poll()
                time.sleep(0.1)
            for one in left:
                try:
                    os.kill(one, sign)
                except ProcessLookupError:
                    continue
        for child in self.children.values():
            child.poll()
        shutil.rmtree(self.ray_folder, ignore_errors=True)


def end_group(leader: int) -> None:
    """End what is left of a process group."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def listens(host: str, port: int) -> bool:
    """Whether something takes connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def answers(url: str) -> bool:
    """Whether a GET succeeds."""
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def main() -> int:
    """Run until stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="hold models on the CPU, in float32")
    parser.add_argument("--port", type=int, default=8001, help="of the API, on loopback")
    parser.add_argument("--folder", type=Path, default=Path(".ndif"), help="for logs")
    parser.add_argument("--venv", type=Path, default=Path(".venv-ndif"), help="made by setup.sh")
    parser.add_argument("--keys", type=Path, help="who may send requests; see file_keys.py")
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait for each part")
    options = parser.parse_args()
    if not (options.venv / "bin" / "gunicorn").exists():
        sys.stderr.write(f"{options.venv} is not there. Run examples/ndif/setup.sh first.\n")
        return 2
    if shutil.which("redis-server") is None:
        sys.stderr.write("redis-server is missing. On Debian: apt-get install redis-server\n")
        return 2
    server = Server(
        options.folder.resolve(),
        options.venv.resolve(),
        options.port,
        cpu=options.cpu,
        timeout=options.timeout,
        keys=None if options.keys is None else options.keys.resolve(),
    )

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        server.start()
        sys.stdout.write(f"ready {server.address}\n")
        sys.stdout.flush()
        server.watch()
    except KeyboardInterrupt:
        return 0
    except Failed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
