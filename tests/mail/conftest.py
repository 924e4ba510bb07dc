"""The fixtures of the mailers' tests."""

from tests.mail.mailers import (
    certificate,
    post,
    post_by_folder,
    post_by_ses,
    post_by_smtp,
    post_by_smtps,
    post_by_starttls,
    ses_server,
    trust,
)

__all__ = [
    "certificate",
    "post",
    "post_by_folder",
    "post_by_ses",
    "post_by_smtp",
    "post_by_smtps",
    "post_by_starttls",
    "ses_server",
    "trust",
]
