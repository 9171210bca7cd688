"""A bucket for the tests: moto's server, which speaks S3, on 127.0.0.1 in a thread of this process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSystem

BUCKET = "studies"
VARIABLES = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
"""What a process needs to be let in, and so that it asks nobody else."""


@dataclass(frozen=True)
class Bucket:
    """A bucket on a server that runs."""

    port: int

    def address(self, prefix: str) -> str:
        """An address in the bucket that holds in every process with `VARIABLES`."""
        return f"s3://{BUCKET}/{prefix}?endpoint_override=127.0.0.1:{self.port}&scheme=http"


@contextmanager
def running_bucket() -> Iterator[Bucket]:
    """An empty bucket; the environment must hold `VARIABLES`."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        bucket = Bucket(server.get_host_and_port()[1])
        system, path = FileSystem.from_uri(f"{bucket.address('')}&allow_bucket_creation=true")
        system.create_dir(path.rstrip("/"))
        yield bucket
    finally:
        server.stop()
