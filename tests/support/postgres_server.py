"""A PostgreSQL server for the tests: a cluster of its own on 127.0.0.1, from Debian's binaries, by an ordinary user."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from search.ledger.database import opened
from search.ledger.tables import TABLES
from search.study.location import normal_ledger

USER, PASSWORD = "fgsearch", "ge%heim@99"
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}
"""Nobody needs what this server holds after a crash."""


def binaries() -> Path | None:
    """The folder of the newest server that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else None


@dataclass
class Server:
    """A server that runs, and its databases."""

    port: int
    made: int = 0
    databases: dict[Path, str] = field(default_factory=dict)

    def address(self, database: str) -> str:
        """The address as a user gives it, password included."""
        return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def engine(self, database: str) -> Engine:
        """A connection that is closed after each use."""
        return create_engine(normal_ledger(self.address(database)), poolclass=NullPool)

    def fresh(self) -> str:
        """SQLAlchemy's address of a new database that has the ledger's tables."""
        self.made += 1
        self.run(f"CREATE DATABASE test{self.made} TEMPLATE ledger")
        return normal_ledger(self.address(f"test{self.made}"))

    def database(self, folder: Path) -> str:
        """The same of the database that stands for a folder."""
        if folder not in self.databases:
            self.databases[folder] = self.fresh()
        return self.databases[folder]

    def run(self, statement: str) -> None:
        """Carry out a statement that no transaction may hold."""
        with self.engine("postgres").connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(statement))

    def make_template(self) -> None:
        """A database with the ledger's tables, which is copied for each test."""
        self.run("CREATE DATABASE ledger")
        with opened(normal_ledger(self.address("ledger"))) as engine:
            TABLES.create_all(engine)


@contextmanager
def running_server(programs: Path) -> Iterator[Server]:
    """A server that ends, and is forgotten, with the context."""
    folder = Path(tempfile.mkdtemp(prefix="fg-postgres-", dir="/tmp"))  # pytest's folders are closed to other users
    try:
        with serving(programs, folder) as server:
            yield server
    finally:
        shutil.rmtree(folder)


@contextmanager
def serving(programs: Path, folder: Path) -> Iterator[Server]:
    """The same, with its data in this folder."""
    who: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        user = pwd.getpwnam("postgres")
        shutil.chown(folder, user.pw_uid, user.pw_gid)
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    secret = folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    login = ["--username", USER, "--auth", "scram-sha-256", "--pwfile", str(secret)]
    initdb = [str(programs / "initdb"), "--pgdata", str(folder / "data"), "--no-sync", "--encoding", "UTF8", *login]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **who)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = FAST | {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    with (folder / "log").open("w") as log:
        command = [str(programs / "postgres"), "-D", str(folder / "data"), *options]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **who)
    try:
        wait_for_port(port, process)
        server = Server(port)
        server.make_template()
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)  # at once, whoever is connected and whatever is not on disk yet
        process.wait(20)


def wait_for_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the server lets somebody in."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            Server(port).engine("postgres").connect().close()
            return
        except OperationalError:
            time.sleep(0.1)
    raise TimeoutError("PostgreSQL does not start")
