"""Where a study lies: its files, its ledger, its runs in MLflow.  Light: neither Optuna nor a database is imported."""

import re
from dataclasses import dataclass
from pathlib import Path

from fgseg.config.errors import ConfigError
from fgseg.config.loading import PATH_NAME
from fgseg.storage.store import Store, absolute, check_store, is_local, join, open_store

LEDGER = "study.db"
"""File of a study's own ledger, in its folder."""
KINDS = re.compile(r"sqlite:///.+|postgres(?:ql)?(?:\+psycopg)?://(?:[^\s'\"/@]*@)?[^\s'\"@]*")
"""What an address of a ledger may look like: nothing in it that would keep its password from being masked."""

TAKEN = ("mlartifacts", "mlflow.db")
"""What MLflow has in a storage."""
PAGE = "report.html"
"""The page of a study's report, in the folder `report` of the study's."""
MODEL = "model"
"""The folder, in a study's, of the best trial's exported model."""
REGISTERED = "registered.txt"
"""Says, in that folder, in which MLflow the model is registered, so that a run that changes nothing need not ask."""


@dataclass(frozen=True)
class StudyLocation:
    """One study of one storage."""

    storage: str
    """The address of the folder of studies: a path from the root, links resolved, or s3://bucket/prefix."""
    study: str
    tracking_uri: str
    shared_ledger: str | None = None
    """Address of a database that holds the ledgers of several studies, as SQLAlchemy takes it."""

    @property
    def folder(self) -> str:
        """The address of the study's folder."""
        return join(self.storage, self.study)

    @property
    def report_store(self) -> Store:
        """Where the files of the report are."""
        return open_store(join(self.folder, "report"))

    def trial_folder(self, number: int) -> str:
        """Return the address of the folder of one trial's files."""
        return join(self.folder, "trials", str(number))

    def trial_store(self, number: int) -> Store:
        """Open the folder of one trial's files."""
        return open_store(self.trial_folder(number))

    @property
    def ledger_url(self) -> str:
        """Address of the study's database; it may hold a password."""
        return self.shared_ledger or f"sqlite:///{join(self.folder, LEDGER)}"

    @property
    def artifacts(self) -> str:
        """Where MLflow keeps the files of an experiment that is created in a database (a server decides itself)."""
        if is_local(self.storage):
            return Path(self.storage, "mlartifacts").as_uri()
        database = Path(self.tracking_uri.removeprefix("sqlite:///"))
        return database.absolute().with_name("mlartifacts").as_uri()


def local_studies(storage: str) -> list[str]:
    """The studies of a storage that keep their own ledger."""
    return [name for name in open_store(storage).folders() if Path(storage, name, LEDGER).exists()]


def find_location(
    storage: str | Path, study: str, tracking_uri: str | None = None, ledger_url: str | None = None
) -> StudyLocation:
    """The place of a study by its names; the addresses default to databases in a storage that is a folder.

    Raises:
        ConfigError: a name that cannot be a folder of the storage, an address that does not hold, or a storage that is
            not there or needs more addresses.
    """
    location = resolve_location(str(storage), study, tracking_uri, ledger_url)
    if is_local(location.storage):
        folder = Path(location.storage)
        if not folder.is_dir():
            raise ConfigError(f"--storage: no folder {folder}; name the folder of studies")
        if Path(location.folder).resolve() != Path(location.folder):
            raise ConfigError(f"--study: {study} leads out of {folder}; give the storage where it really is")
    else:
        check_store(location.storage, "--storage")
    return location


def resolve_location(storage: str, study: str, tracking_uri: str | None, ledger_url: str | None) -> StudyLocation:
    """The same for a study that may not exist yet; looks at nothing but the names and addresses themselves."""
    if not PATH_NAME.fullmatch(study):
        raise ConfigError(
            f"--study: got {study!r}, must be letters, digits, dots, dashes and underscores (it names a folder)"
        )
    if study in TAKEN:
        raise ConfigError(f"--study: got {study!r}, which is MLflow's in a storage; choose another")
    try:
        home, local = absolute(storage), is_local(storage)
    except ConfigError as error:
        raise ConfigError(f"--storage: {error}") from None
    if not local:
        check_companions(tracking_uri, ledger_url)
    check_tracking(tracking_uri or "")
    tracking = tracking_uri or f"sqlite:///{join(home, 'mlflow.db')}"
    return StudyLocation(home, study, tracking, normal_ledger(ledger_url) if ledger_url else None)


def check_companions(tracking_uri: str | None, ledger_url: str | None) -> None:
    """Raise ConfigError unless a storage in a bucket comes with what cannot lie in one."""
    needed = {"--ledger-url": ledger_url, "--tracking-uri": tracking_uri}
    if missing := [name for name, value in needed.items() if not value]:
        raise ConfigError(
            f"--storage: s3:// holds files only, so {' and '.join(missing)} must be given: "
            "a postgresql:// database for the ledger, a server or database for MLflow"
        )
    if not str(tracking_uri).startswith(("http://", "https://", "sqlite:///")):
        raise ConfigError("--tracking-uri: with an s3:// storage give an MLflow server (http://) or sqlite:///FILE")


def check_tracking(uri: str) -> None:
    """Raise ConfigError for an address of MLflow whose password could not be masked."""
    authority, _, path = uri.partition("://")[2].partition("/")
    if authority and "@" in path.partition("?")[0]:
        raise ConfigError("--tracking-uri: / and @ in a user's name or password must be percent-encoded (%2F, %40)")


def normal_ledger(url: str) -> str:
    """The address of a ledger as SQLAlchemy takes it.

    Raises:
        ConfigError: another kind of database, or characters that must be percent-encoded.
    """
    if not KINDS.fullmatch(url):
        kind = "" if url.startswith(("sqlite:", "postgres")) else f" (got {url.partition(':')[0]!r})"
        raise ConfigError(
            f"--ledger-url: must be postgresql://USER@HOST/DATABASE or sqlite:///FILE{kind}, "
            "with spaces, quotes, / and @ in a user's name or password percent-encoded"
        )
    return re.sub(r"^postgres(?:ql)?(?:\+psycopg)?://", "postgresql+psycopg://", url)


def public_address(text: str) -> str:
    """An address, or a text that holds some, with user names, passwords and secret query values masked."""
    text = re.sub(r"://[^/\s'\"]*@", "://***@", text)
    return re.sub(r"([?&][\w.-]*(?:password|passwd|token|secret|key)[\w.-]*=)[^&\s'\"]+", r"\1***", text, flags=re.I)
