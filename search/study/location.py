"""Addresses of a study's files, ledger and MLflow runs.  Imports neither Optuna nor a database driver."""

import re
from dataclasses import dataclass
from pathlib import Path

from fgseg.config.errors import ConfigError
from fgseg.config.loading import PATH_NAME
from fgseg.storage.store import Store, absolute, check_store, is_local, join, open_store

LEDGER = "study.db"
"""Name of the SQLite file of a study's ledger, in the study's folder."""
LEDGER_URL = re.compile(r"sqlite:///.+|postgres(?:ql)?(?:\+psycopg)?://(?:[^\s'\"/@]*@)?[^\s'\"@]*")
"""Accepted addresses of a ledger; others could contain a password that `public_address` does not mask."""

TRACKING_URI = re.compile(r"https?://[^/]|sqlite:///.|(postgresql|mysql|mssql)(\+\w+)?://.|databricks(-uc)?(://|$)")
"""Accepted beginnings of an address of MLflow."""
RESERVED_NAMES = ("mlartifacts", "mlflow.db", "optuna.db", "optuna-artifacts")
"""Names in a storage that MLflow and Optuna's dashboard use; no study may have them."""
PAGE = "report.html"
"""Name of the report's HTML page, in the folder `report` of the study's folder."""
MODEL = "model"
"""Name of the folder of the best trial's exported model, in the study's folder."""
REGISTERED = "registered.txt"
"""Name of a file in the exported model's folder with the address of the MLflow in which the model is registered.  A run
that does not change the model then skips the registration."""


@dataclass(frozen=True)
class StudyLocation:
    """Addresses of one study."""

    storage: str
    """Address of the folder of studies: an absolute path with links resolved, or s3://bucket/prefix."""
    study: str
    tracking_uri: str
    shared_ledger: str | None = None
    """SQLAlchemy address of a database for several ledgers; None for an SQLite file in the study's folder."""

    @property
    def folder(self) -> str:
        """Address of the study's folder."""
        return join(self.storage, self.study)

    @property
    def report_store(self) -> Store:
        """Store of the report's files."""
        return open_store(join(self.folder, "report"))

    def trial_folder(self, number: int) -> str:
        """Return the address of the folder of one trial's files."""
        return join(self.folder, "trials", str(number))

    def trial_store(self, number: int) -> Store:
        """Open the folder of one trial's files."""
        return open_store(self.trial_folder(number))

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy address of the study's database; may contain a password."""
        return self.shared_ledger or f"sqlite:///{join(self.folder, LEDGER)}"

    @property
    def artifacts(self) -> str:
        """Address of MLflow's artifacts if its runs are stored in a database; a server chooses its own."""
        if is_local(self.storage):
            return Path(self.storage, "mlartifacts").as_uri()
        database = Path(self.tracking_uri.removeprefix("sqlite:///"))
        return database.absolute().with_name("mlartifacts").as_uri()


def local_studies(storage: str) -> list[str]:
    """Return the names of the studies of a local storage that have their own ledger, see LEDGER."""
    return [name for name in open_store(storage).folders() if Path(storage, name, LEDGER).exists()]


def find_location(
    storage: str | Path, study: str, tracking_uri: str | None = None, ledger_url: str | None = None
) -> StudyLocation:
    """Return the location of a study in an existing storage; the study itself is not looked for.

    Args:
        storage: address of the folder of studies.
        study: name of the study.
        tracking_uri: address of MLflow; by default <storage>/mlflow.db, not for s3://.
        ledger_url: address of the ledger's database; by default in the study's folder, not for s3://.

    Raises:
        ConfigError: the storage does not exist, a name or address is not valid, or s3:// without both addresses.
    """
    location = resolve_location(str(storage), study, tracking_uri, ledger_url)
    if is_local(location.storage):
        folder = Path(location.storage)
        if not folder.is_dir():
            raise ConfigError(f"--storage: no folder {folder}; name the folder of studies")
        if Path(location.folder).resolve() != Path(location.folder):
            raise ConfigError(f"--study: {study} is outside of {folder} once links are resolved; give its real storage")
    else:
        check_store(location.storage, "--storage")
    return location


def resolve_location(storage: str, study: str, tracking_uri: str | None, ledger_url: str | None) -> StudyLocation:
    """Return the location of a study without access to storage or databases.

    Arguments are those of `find_location`; raises ConfigError for a name or address that is not valid.
    """
    if not PATH_NAME.fullmatch(study):
        raise ConfigError(
            f"--study: got {study!r}, must be at most 100 letters, digits, dots, dashes and underscores (it names a "
            "folder)"
        )
    if study in RESERVED_NAMES:
        raise ConfigError(f"--study: got {study!r}, which MLflow uses in a storage; choose another")
    try:
        folder, local = absolute(storage), is_local(storage)
    except ConfigError as error:
        raise ConfigError(f"--storage: {error}") from None
    if not local:
        check_bucket_addresses(tracking_uri, ledger_url)
    check_tracking(tracking_uri or "")
    tracking = tracking_uri or f"sqlite:///{join(folder, 'mlflow.db')}"
    return StudyLocation(folder, study, tracking, normal_ledger(ledger_url) if ledger_url else None)


def check_bucket_addresses(tracking_uri: str | None, ledger_url: str | None) -> None:
    """Raise ConfigError unless ledger and MLflow have addresses of their own, which an s3:// storage needs."""
    needed = {"--ledger-url": ledger_url, "--tracking-uri": tracking_uri}
    if missing := [name for name, value in needed.items() if not value]:
        raise ConfigError(
            f"--storage: s3:// holds files only, so {' and '.join(missing)} must be given: "
            "a postgresql:// database for the ledger, a server or database for MLflow"
        )
    if not str(tracking_uri).startswith(("http://", "https://", "sqlite:///")):
        raise ConfigError("--tracking-uri: with an s3:// storage give an MLflow server (http://) or sqlite:///FILE")


def check_tracking(uri: str) -> None:
    """Raise ConfigError for an address that MLflow refuses, or whose password `public_address` cannot mask."""
    if uri and not TRACKING_URI.match(uri):
        raise ConfigError(
            f"--tracking-uri: got {public_address(uri)!r}, must be an MLflow server, http://HOST:PORT, or a database, "
            "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
    authority, _, path = uri.partition("://")[2].partition("/")
    if authority and "@" in path.partition("?")[0]:
        raise ConfigError("--tracking-uri: / and @ in a user's name or password must be percent-encoded (%2F, %40)")


def normal_ledger(url: str) -> str:
    """Return the SQLAlchemy address of a ledger, with the driver psycopg for PostgreSQL.

    Raises:
        ConfigError: neither SQLite nor PostgreSQL, or a character that must be percent-encoded.
    """
    if not LEDGER_URL.fullmatch(url):
        kind = "" if url.startswith(("sqlite:", "postgres")) else f" (got {url.partition(':')[0]!r})"
        raise ConfigError(
            f"--ledger-url: must be postgresql://USER@HOST/DATABASE or sqlite:///FILE{kind}, "
            "with spaces, quotes, / and @ in a user's name or password percent-encoded"
        )
    return re.sub(r"^postgres(?:ql)?(?:\+psycopg)?://", "postgresql+psycopg://", url)


def public_address(text: str) -> str:
    """Mask user names, passwords and secret query values of all addresses in a text, for messages and logs."""
    text = re.sub(r"://[^/\s'\"]*@", "://***@", text)
    return re.sub(r"([?&][\w.-]*(?:password|passwd|token|secret|key)[\w.-]*=)[^&\s'\"]+", r"\1***", text, flags=re.I)
