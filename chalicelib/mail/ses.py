"""Mail by AWS's Simple Email Service, version 2. It asks for the right ``ses:SendEmail``."""

import re
from dataclasses import dataclass
from email.utils import formataddr
from functools import cached_property
from typing import Any

from chalicelib.mail import Mailbox, MailError, Message


@dataclass(frozen=True)
class SESMailer:
    """``Mailer`` by SES. Credentials, and a region where none is given, come as AWS's tools find
    them; ``timeout`` is in seconds, and how long SES may be silent."""

    sender: Mailbox
    region: str = ""
    endpoint: str = ""
    timeout: float = 15

    def send(self, message: Message) -> None:
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.exceptions import ConnectionError as NoConnection
        from botocore.parsers import ResponseParserError

        if not message.to.isascii():
            raise MailError("SES takes ASCII addresses alone.")
        try:
            self._client.send_email(
                FromEmailAddress=formataddr(self.sender),
                Destination={"ToAddresses": [message.to]},
                Content={
                    "Simple": {
                        "Subject": {"Data": message.subject, "Charset": "UTF-8"},
                        "Body": {"Text": {"Data": message.text, "Charset": "UTF-8"}},
                        "Headers": [{"Name": "Auto-Submitted", "Value": "auto-generated"}],
                    }
                },
            )
        except ClientError as error:
            raise MailError(f"SES refused the message: {_said(error.response)}.") from error
        except (NoConnection, HTTPClientError, ResponseParserError) as error:
            raise MailError(f"SES is out of reach: {type(error).__name__}.") from error
        except BotoCoreError as error:
            raise MailError(f"SES cannot be asked: {type(error).__name__}.") from error

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        # A session of its own: boto3's default one must not be used from several threads.
        return boto3.session.Session(region_name=self.region or None).client(
            "sesv2",
            endpoint_url=self.endpoint or None,
            config=Config(
                connect_timeout=min(self.timeout, 5),
                read_timeout=self.timeout,
                # No more: one that was lost on its way back would be sent again.
                retries={"total_max_attempts": 1},
            ),
        )


def _said(response: Any) -> str:
    """SES's answer as one line, without addresses."""
    status = response["ResponseMetadata"]["HTTPStatusCode"]
    error = response["Error"]
    text = re.sub(r"[^\s<>,]+@[^\s<>,]+", "…", " ".join(str(error.get("Message", "")).split()))
    return f"{status} {error.get('Code', '')}: {text[:300].rstrip('.')}"
