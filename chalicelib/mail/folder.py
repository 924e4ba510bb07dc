"""Mail into a folder, for development: each message a file that mail programs open."""

import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex

from chalicelib.folders import sync_folder
from chalicelib.mail import Mailbox, MailError, Message
from chalicelib.mail.mime import compose
from chalicelib.settings import check_folder


@dataclass(frozen=True)
class FolderMailer:
    """``Mailer`` into ``<time>-<random>.eml``, whose names sort by time. The folder is made when it
    is needed. It and the files, which hold links that reset passwords, are for their owner
    alone."""

    sender: Mailbox
    folder: Path

    def send(self, message: Message) -> None:
        data = compose(message, self.sender, eight_bit=True)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{token_hex(4)}.eml"
        try:
            check_folder(self.folder)
            for folder in (*reversed(self.folder.parents), self.folder):
                folder.mkdir(mode=0o700, exist_ok=True)
            self._write(name, data)
        except OSError as error:
            raise MailError(
                f"The mail could not be written to {self.folder}: {error.strerror}."
            ) from error

    def _write(self, name: str, data: bytes) -> None:
        number, written = tempfile.mkstemp(dir=self.folder, prefix=".mail-")  # mode 0600
        try:
            with os.fdopen(number, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(written).rename(self.folder / name)
        except BaseException:
            Path(written).unlink(missing_ok=True)
            raise
        sync_folder(self.folder)
