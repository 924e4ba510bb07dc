"""What runs the functions. A host turns its own events into requests, and is thin."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chalicelib.afterwards import Afterwards
    from chalicelib.context import Context
    from chalicelib.identity import Policy
    from chalicelib.metadata.database import Database
    from chalicelib.registry.pulls import Pulls
    from chalicelib.settings import Settings


def build_context(
    settings: "Settings",
    *,
    exposed: bool = False,
    head_by_redirect: bool = False,
    challenges: bool = True,
    shared: bool = False,
    afterwards: "Afterwards | None" = None,
    pulls: "Pulls | None" = None,
    wake: Callable[[], None] = lambda: None,
) -> "Context":
    """Everything that the functions of one process share. Opens no connection.

    ``exposed`` is set by a host that other machines reach whatever the settings say, ``shared`` by
    one whose processes are many and share a database (see ``Database``);
    ``pulls`` is what counts them, in the process's memory where none is given; the rest is told in
    ``Context``. Raises ``SettingsError``.
    """
    from chalicelib.afterwards import Afterwards
    from chalicelib.context import Context
    from chalicelib.identity.capabilities import Capabilities
    from chalicelib.identity.keys import Keys
    from chalicelib.identity.open import Open
    from chalicelib.mail import open_mailer
    from chalicelib.registry.pulls import Gathered
    from chalicelib.resolvers.opening import Resolvers
    from chalicelib.settings import SettingsError, secret_key
    from chalicelib.storage import open_store

    if not settings.database_url:
        raise SettingsError(
            "OPENREGISTRY_DATABASE_URL", "is needed here: only `serve` runs a Postgres of its own"
        )
    database = open_database(settings, shared=shared)
    keys = Keys(secret_key(settings), settings.old_secret_key)
    if check_access(settings, exposed=exposed) == "open":
        access: Policy = Open(database)
    else:
        from chalicelib.identity.access import Accounts

        access = Accounts(settings, database, keys)
    store = open_store(settings)
    return Context(
        settings=settings,
        access=access,
        database=database,
        store=store,
        keys=keys,
        capabilities=Capabilities(keys, settings.upload_expiry),
        mailer=open_mailer(settings),
        pulls=pulls or Gathered(database),
        resolvers=Resolvers(settings, database, keys, store),
        head_by_redirect=head_by_redirect,
        challenges=challenges,
        afterwards=afterwards or Afterwards(),
        wake=wake,
    )


def open_database(settings: "Settings", *, shared: bool = False) -> "Database":
    """The database that DATABASE_URL names. Connects to nothing. Raises ``SettingsError``."""
    from chalicelib.metadata.database import Database
    from chalicelib.settings import SettingsError

    try:
        return Database(
            settings.database_url,
            pool=settings.database_pool,
            prepare=settings.database_prepare,
            shared=shared,
        )
    except ValueError as error:
        raise SettingsError("OPENREGISTRY_DATABASE_URL", str(error)) from None


@contextmanager
def opened_database(settings: "Settings | None" = None) -> "Iterator[Database]":
    """The registry's database for a command, with all migrations: the one that DATABASE_URL names,
    or the embedded one, which is started where no registry runs it. ``settings`` are the
    environment's unless given. What is refused within becomes the command's error. Raises
    ``CommandError`` and ``SettingsError``."""
    from chalicelib.settings import Settings

    settings = settings or Settings.from_environment()
    with _refusals(), ExitStack() as stack:
        database = open_database(_with_database(settings, stack))
        stack.callback(database.close)
        _check_migrations(database)
        yield database


@contextmanager
def opened_context() -> "Iterator[Context]":
    """What functions are given, for a command; see ``opened_database``."""
    from chalicelib.settings import Settings, secret_key

    settings = Settings.from_environment()
    # Before there is a URL of our own Postgres, which would look like a setting.
    settings = replace(settings, access=check_access(settings))
    check_folders(settings)
    settings = replace(settings, secret_key=secret_key(settings))
    with _refusals(), ExitStack() as stack:
        context = build_context(_with_database(settings, stack))
        stack.callback(context.database.close)
        _check_migrations(context.database)
        yield context


@contextmanager
def _refusals() -> Iterator[None]:
    """Have what is refused be a command's error."""
    from chalicelib.cli import CommandError
    from chalicelib.http import RegistryError, Unavailable
    from chalicelib.identity.users import Refused
    from chalicelib.storage import StorageError

    try:
        yield
    except Unavailable as error:
        # The sentence is for clients; its cause tells the person why.
        why = f" ({error.__cause__})" if error.__cause__ else ""
        raise CommandError(f"{error}{why}") from error
    except (Refused, RegistryError, StorageError) as error:
        raise CommandError(str(error)) from error


def _with_database(settings: "Settings", stack: ExitStack) -> "Settings":
    """The settings with a DATABASE_URL. Without one the embedded Postgres runs until ``stack`` is
    left."""
    from chalicelib.cli import CommandError
    from chalicelib.metadata.embedded import Embedded, EmbeddedError
    from chalicelib.metadata.migrate import MigrationError, migrate

    if settings.database_url:
        return settings
    try:
        url = stack.enter_context(Embedded(settings.data_dir / "postgres")).url
        migrate(url)
    except (EmbeddedError, MigrationError) as error:
        raise CommandError(str(error)) from error
    return replace(settings, database_url=url)


def _check_migrations(database: "Database") -> None:
    from chalicelib.cli import CommandError
    from chalicelib.metadata.migrate import current

    if not current(database):
        raise CommandError("the database lacks migrations: run openregistry migrate")


def check_folders(settings: "Settings") -> None:
    """Raise ``SettingsError`` where STORAGE_URL or a mail setting is wrong, or where STORAGE_URL or
    DATA_DIR names what cannot be a folder to write into. Makes nothing."""
    from chalicelib.mail import open_mailer
    from chalicelib.settings import SettingsError, check_data_dir, check_folder
    from chalicelib.storage import open_store
    from chalicelib.storage.filesystem import FileStore

    store = open_store(settings)
    open_mailer(settings)
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


def check_access(settings: "Settings", *, exposed: bool = False) -> str:
    """Which policy decides, ``open`` or ``accounts``. Raises ``SettingsError`` where everyone could
    do everything from another machine."""
    from chalicelib.settings import SettingsError

    exposed = exposed or settings.exposed or bool(settings.trusted_proxies)
    if settings.access == "open" and exposed:
        raise SettingsError(
            "OPENREGISTRY_ACCESS",
            "cannot be open where other machines can reach this registry: leave it out, or say"
            " accounts",
        )
    if settings.access:
        return settings.access
    return "accounts" if exposed or settings.database_url or settings.storage_url else "open"
