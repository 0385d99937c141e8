"""How are a Dockerfile and services of a compose file run where there is no container engine?

In namespaces of our own: an image is a folder that one changes the root to, with this machine's /usr and Python in place of
those of the base image. Everything else is as the files say: what is copied, run, mounted, who runs it, and that the
root is read-only. All services share one network, which has nothing but a loopback; so their names lead there.
Needs root, and changes nothing of this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
READER = Path(__file__).parent / "containers"
OF_THE_MACHINE = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
PATIENCE = 600


def reader(folder):
    """The program that reads compose files and Dockerfiles as Compose and BuildKit do; the test is skipped where it cannot be built.

    Returns:
        A function of a subcommand and a path.
    """
    if shutil.which("go") is None:
        pytest.skip(
            "Go is not installed: docker-compose.yml and Dockerfile are read by Go modules of Compose and BuildKit"
        )
    program = folder / "containers"
    done = subprocess.run(
        ["go", "build", "-o", str(program), "."],
        cwd=READER,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    def read(what, path, **environment):
        done = subprocess.run(
            [str(program), what, str(path)],
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return read


def needs_namespaces():
    """The test is skipped, by name, where we may make none."""
    wanted = ("unshare", "nsenter", "setpriv", "chroot", "mount", "ip")
    missing = [name for name in wanted if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"a root of its own needs root and {', '.join(missing or wanted)}")
    made = subprocess.run(
        ["unshare", "--mount", "--net", "true"], capture_output=True, timeout=PATIENCE, check=False
    )
    if made.returncode != 0:
        pytest.skip(
            "this machine lets nobody make namespaces, and nothing that could be installed would; ci: may be skipped"
        )


def place():
    """A folder for an engine: in memory where there is room, for it gets some thousands of files. Others may pass through it."""
    memory = Path("/dev/shm")
    in_memory = (
        memory.is_dir()
        and shutil.disk_usage(memory).free > 3 * 1024**3
        and not os.statvfs(memory).f_flag & os.ST_NOEXEC
    )
    # Never pytest's own folder, which is root's alone: who is not root has to get to the images.
    folder = Path(tempfile.mkdtemp(prefix="hopwatch-engine-", dir=memory if in_memory else None))
    folder.chmod(0o711)
    return folder


@dataclass
class Image:
    """A root, and what the Dockerfile says of those who run in it."""

    root: Path
    environment: dict = field(default_factory=dict)
    user: str = ""
    folder: str = "/"
    entrypoint: list = field(default_factory=list)
    command: list = field(default_factory=list)
    healthcheck: list = field(default_factory=list)
    copied: list = field(default_factory=list)
    """What comes from other images: folders there, and where they are here. They are mounted, for a copy takes its time."""


class Engine:
    """Builds images and runs services; `close` ends them all.

    Args:
        folder: for images and volumes.
        read: from `reader`.
        project: as `read` gives it.
    """

    def __init__(self, folder, read, project):
        self.folder = folder
        self.project = project
        self.processes = {}
        self._stages = {stage["Name"]: stage for stage in read("dockerfile", REPOSITORY / "Dockerfile")}
        self._context = read("context", REPOSITORY)
        self._images = {}
        self._network = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 1800"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._network.stdout.readline() == "up\n"

    def close(self):
        # The youngest first, one after the other: an agent whose collector is gone tries for long to tell it of its end.
        for process in reversed([*self.processes.values()]):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._network.kill()
        self._network.wait()
        self._network.stdout.close()

    # Images --------------------------------------------------------------------------------------------------------

    def image(self, name):
        """A stage of the Dockerfile, built."""
        if name not in self._images:
            self._images[name] = self._build(self._stages[name])
        return self._images[name]

    def _build(self, stage):
        root = self.folder / "images" / stage["Name"]
        if stage["Base"] in self._stages:
            base = self.image(stage["Base"])
            root.parent.mkdir(exist_ok=True)
            subprocess.run(["cp", "-a", str(base.root), str(root)], check=True, timeout=PATIENCE)
            assert not base.copied
            image = replace(base, root=root, environment={**base.environment}, copied=[])
        else:
            image = self._base(root)
        for each in stage["Instructions"]:
            getattr(self, f"_{each['Name'].lower()}")(image, each)
        return image

    def _base(self, root):
        """What stands for an image of Python: this machine's /usr, a copy of its /etc, and its Python."""
        root.mkdir(parents=True)
        prefix = Path(sys.base_prefix)
        for place in (
            *OF_THE_MACHINE,
            "/proc",
            "/dev",
            "/var/lib",
            "/run",
            "/opt",
            "/root",
            "/shims",
            str(prefix),
        ):
            (root / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for place in ("tmp", "var/tmp"):
            (root / place).mkdir()
            (root / place).chmod(0o1777)
        subprocess.run(["cp", "-a", "/etc", str(root)], check=True, timeout=PATIENCE)
        names = " ".join(self.project["services"])
        (root / "etc/hosts").write_text(f"127.0.0.1 localhost {names}\n")
        (root / "shims/python").symlink_to(os.path.realpath(sys._base_executable))
        path = f"{prefix}/bin:/shims:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        return Image(root, {"PATH": path, "LANG": "C.UTF-8"})

    def _env(self, image, given):
        for name, value in given["Values"].items():
            image.environment[name] = value.replace("$PATH", image.environment["PATH"])

    def _workdir(self, image, given):
        image.folder = given["Arguments"][0]
        (image.root / image.folder.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _user(self, image, given):
        image.user = given["Arguments"][0]

    def _expose(self, image, given):
        pass

    def _entrypoint(self, image, given):
        assert not given["Shell"]
        image.entrypoint, image.command = given["Arguments"], []

    def _cmd(self, image, given):
        assert not given["Shell"]
        image.command = given["Arguments"]

    def _healthcheck(self, image, given):
        image.healthcheck = given["Arguments"]

    def _copy(self, image, given):
        *sources, target = given["Arguments"]
        assert not given["Owner"]
        into = image.root / str(Path(image.folder, target)).lstrip("/")
        for source in sources:
            if given["From"]:
                assert not into.exists()
                into.mkdir(parents=True)
                image.copied.append((str(self.image(given["From"]).root / source.lstrip("/")), target))
                continue
            files = [name for name in self._context if name == source or name.startswith(f"{source}/")]
            assert files, f".dockerignore leaves nothing of {source}"
            for name in files:
                one = name == source
                at = into / Path(name).name if one and target.endswith("/") else into
                at = at if one else into / Path(name).relative_to(source)
                at.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, at)

    def _run(self, image, given):
        assert given["Shell"]
        # How the package index is reached is this machine's affair.
        passed = {
            name: value
            for name, value in os.environ.items()
            if name.lower().endswith("_proxy") or name in ("PIP_INDEX_URL", "PIP_CERT", "SSL_CERT_FILE")
        }
        command = self._inside(
            image, ["sh", "-c", *given["Arguments"]], {**passed, "HOME": "/root"}, user=image.user
        )
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 0, (given["Arguments"], done.stdout[-2000:], done.stderr[-2000:])

    # Services ------------------------------------------------------------------------------------------------------

    def of(self, name):
        """A service, its image, and the command that it is started with."""
        service = self.project["services"][name]
        image = self.image(service["build"]["target"])
        entrypoint = service.get("entrypoint") or image.entrypoint
        command = service.get("command") or ([] if service.get("entrypoint") else image.command)
        return service, image, [*entrypoint, *command]

    def start(self, name):
        """Start a service as the compose file says; what it prints goes to `<name>.log`."""
        service, image, command = self.of(name)
        with self.log(name).open("a") as log:
            self.processes[name] = subprocess.Popen(
                self._contained(service, image, command), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def log(self, name):
        return self.folder / f"{name}.log"

    def does(self, name, *command):
        """Run a command in a service's container, as `docker compose exec` does; returns its end."""
        service, image, _ = self.of(name)
        return subprocess.run(
            self._contained(service, image, command),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def is_healthy(self, name):
        """Whether the service's health check says so."""
        kind, *command = self.project["services"][name]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.does(name, *command).returncode == 0

    def _contained(self, service, image, command):
        mounts = []
        for each in service.get("volumes", ()):
            source, target = each["source"], image.root / each["target"].lstrip("/")
            if each["type"] == "bind":
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.mkdir() if Path(source).is_dir() else target.touch()
            else:
                source = self._volume(source, target)
            mounts.append((source, each["target"], each.get("read_only", False)))
        return self._inside(
            image,
            command,
            service.get("environment") or {},
            user=service["user"],
            groups=service.get("group_add") or (),
            mounts=mounts,
            tmpfs=[each.partition(":") for each in service.get("tmpfs") or ()],
            read_only=service.get("read_only", False),
            network=True,
        )

    def _volume(self, name, target):
        """A volume: one that is new takes owner and mode of what it is mounted over."""
        path = self.folder / "volumes" / name
        if not path.exists():
            path.mkdir(parents=True)
            if target.exists():
                found = target.stat()
                os.chown(path, found.st_uid, found.st_gid)
                path.chmod(found.st_mode & 0o7777)
        target.mkdir(parents=True, exist_ok=True)
        return str(path)

    def _inside(
        self,
        image,
        command,
        environment,
        *,
        user="",
        groups=(),
        mounts=(),
        tmpfs=(),
        read_only=False,
        network=False,
    ):
        """The command that runs a command in an image's root."""
        at = shlex.quote(str(image.root))
        lines = ["set -e", f"mount --bind {at} {at}"]
        for place in (*OF_THE_MACHINE, sys.base_prefix):
            if Path(place).exists() and not (place == sys.base_prefix and place.startswith("/usr")):
                lines += [f"mount --bind {place} {at}{place}", f"mount -o remount,ro,bind {at}{place}"]
        lines += [f"mount --rbind {place} {at}{place}" for place in ("/proc", "/dev")]
        for source, target, locked in (*((*each, True) for each in image.copied), *mounts):
            lines.append(f"mount --bind {shlex.quote(source)} {at}{shlex.quote(target)}")
            if locked:
                lines.append(f"mount -o remount,ro,bind {at}{shlex.quote(target)}")
        for target, _, options in tmpfs:
            lines.append(f"mount -t tmpfs -o {shlex.quote(options)} tmpfs {at}{shlex.quote(target)}")
        if read_only:
            lines.append(f"mount -o remount,ro,bind {at}")
        says = {**image.environment, **environment}
        words = ["env", "-i", *(f"{name}={value}" for name, value in says.items())]
        if user:
            number, _, group = user.partition(":")
            chosen = ["--groups", ",".join(groups)] if groups else ["--clear-groups"]
            words += [
                "setpriv", "--reuid", number, "--regid", group, *chosen, "--no-new-privs", "--bounding-set", "-all", "--inh-caps", "-all",
            ]  # fmt: skip
        words += ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", image.folder, *command]
        lines.append(f"exec chroot {at} {shlex.join(words)}")
        joined = ["nsenter", f"--net=/proc/{self._network.pid}/ns/net"] if network else []
        return [*joined, "unshare", "--mount", "sh", "-c", "\n".join(lines)]


@contextlib.contextmanager
def engine(folder, read, project):
    """An engine that is closed at the end."""
    running = Engine(folder, read, project)
    try:
        yield running
    finally:
        running.close()
