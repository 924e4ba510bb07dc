"""What runs the functions. A host turns its own events into requests, and is thin."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chalicelib.context import Context
    from chalicelib.identity import Policy
    from chalicelib.metadata.database import Database
    from chalicelib.settings import Settings


def build_context(
    settings: "Settings", *, exposed: bool = False, head_by_redirect: bool = False
) -> "Context":
    """Everything that the functions of one process share. Opens no connection.

    ``exposed`` is set by a host that other machines reach whatever the settings say, and
    ``head_by_redirect`` is told in ``Context``. Raises ``SettingsError``.
    """
    from chalicelib.context import Context
    from chalicelib.identity.capabilities import Capabilities
    from chalicelib.settings import SettingsError, secret_key
    from chalicelib.storage import open_store

    if not settings.database_url:
        raise SettingsError(
            "OPENREGISTRY_DATABASE_URL", "is needed here: only `serve` runs a Postgres of its own"
        )
    return Context(
        settings=settings,
        access=choose_access(settings, exposed=exposed),
        database=open_database(settings),
        store=open_store(settings),
        capabilities=Capabilities(secret_key(settings), settings.upload_expiry),
        head_by_redirect=head_by_redirect,
    )


def open_database(settings: "Settings") -> "Database":
    """The database that DATABASE_URL names. Connects to nothing. Raises ``SettingsError``."""
    from chalicelib.metadata.database import Database
    from chalicelib.settings import SettingsError

    try:
        return Database(
            settings.database_url, pool=settings.database_pool, prepare=settings.database_prepare
        )
    except ValueError as error:
        raise SettingsError("OPENREGISTRY_DATABASE_URL", str(error)) from None


def check_folders(settings: "Settings") -> None:
    """Raise ``SettingsError`` where STORAGE_URL is wrong, or where it or DATA_DIR names what cannot
    be a folder to write into. Makes nothing."""
    from chalicelib.settings import SettingsError, check_data_dir, check_folder
    from chalicelib.storage import open_store
    from chalicelib.storage.filesystem import FileStore

    store = open_store(settings)
    if not (settings.database_url and settings.storage_url and settings.secret_key):
        check_data_dir(settings)
    if isinstance(store, FileStore):
        name = "STORAGE_URL" if settings.storage_url else "DATA_DIR"
        try:
            check_folder(store.folder)
        except OSError as error:
            raise SettingsError(
                f"OPENREGISTRY_{name}", f"{store.folder} cannot be used: {error.strerror}"
            ) from None


def choose_access(settings: "Settings", *, exposed: bool = False) -> "Policy":
    """Who may do what: those in HTPASSWD, or everyone where only this machine can ask."""
    from chalicelib.settings import SettingsError

    if settings.htpasswd is not None:
        from chalicelib.identity.htpasswd import Htpasswd

        return Htpasswd(settings.htpasswd)
    if exposed or settings.exposed:
        raise SettingsError(
            "OPENREGISTRY_HTPASSWD",
            "is needed, since other machines can reach this registry: name a file of name:hash"
            " lines, which `htpasswd -B -c FILE NAME` makes",
        )
    from chalicelib.identity.open import Open

    return Open()
