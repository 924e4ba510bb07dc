"""What the registry writes to people.

Links lead to the account page. Their secret stands in the fragment, which browsers send to nobody.
They begin with what the settings say, never with a request's ``Host``: anybody may send any
``Host``, and would have links sent in our name that lead elsewhere.
"""

from chalicelib.mail import Message
from chalicelib.settings import Settings


def base_url(settings: Settings) -> str:
    """Scheme and host at which people reach the registry: PUBLIC_URL, else where it listens."""
    if settings.public_url:
        return settings.public_url
    scheme = "https" if settings.secure else "http"
    return f"{scheme}://{settings.listen}".replace("://127.0.0.1:", "://localhost:")


def link(settings: Settings, kind: str, secret: str) -> str:
    """The link that opens one part of the account page: ``verify``, ``reset``, ``invitation`` or
    ``first``."""
    return f"{base_url(settings)}/account#{kind}={secret}"


def verification(to: str, name: str, link: str) -> Message:
    """To an address that an account claims."""
    return _letter(
        to,
        "Verify your email",
        f"Hello,\n\n"
        f"this address was given for the account {name}. If that was you, open this link and"
        f" press Verify:\n\n"
        f"{link}\n\n"
        "It works once, for three days. Until then the account can pull and not push.\n\n"
        "If it was somebody else, do nothing: the account will not have your address.",
    )


def taken(to: str, name: str, asked_for: str, link: str) -> Message:
    """To the owner of an address that somebody made another account with."""
    return _letter(
        to,
        "You have an account already",
        f"Hello {name},\n\n"
        f"somebody made the account {asked_for} and gave your address, which belongs to your"
        f" account {name}. The new account does not get it.\n\n"
        f"If it was you: sign in as {name}. If you do not remember the password, ask for"
        f" another at\n\n"
        f"{link}\n\n"
        "If it was somebody else, do nothing: they were not told of your account.",
    )


def reset(to: str, name: str, link: str) -> Message:
    """To somebody who says that they forgot their password."""
    return _letter(
        to,
        "Choose a new password",
        f"Hello {name},\n\n"
        f"somebody asked for a new password for your account. If that was you, choose it"
        f" here:\n\n"
        f"{link}\n\n"
        "The link works once, for two hours. Browsers that are signed in will be signed out.\n\n"
        "If it was somebody else, do nothing: your password stays as it is.",
    )


def welcome(to: str, name: str, link: str) -> Message:
    """To somebody for whom an administrator has made an account."""
    return _letter(
        to,
        "Your account",
        f"Hello,\n\n"
        f"an account was made for you: {name}. Choose your password here:\n\n"
        f"{link}\n\n"
        "The link works once, for seven days.",
    )


def invitation(to: str, link: str) -> Message:
    """To somebody who may make an account."""
    return _letter(
        to,
        "You are invited",
        f"Hello,\n\n"
        f"you are invited to make an account:\n\n"
        f"{link}\n\n"
        "The link works once, for seven days. If you expected no invitation, do nothing.",
    )


def changed(to: str, name: str, what: str) -> Message:
    """To the owner of an account, after a change that somebody else must not have made."""
    return _letter(
        to,
        "Your account was changed",
        f"Hello {name},\n\n"
        f"{what}\n\n"
        "If that was you, all is well. If it was not, choose a new password at once, look at your"
        " passkeys and access tokens, and tell the registry's administrator.",
    )


def webhook_disabled(to: str, name: str, registry: str, url: str, reason: str) -> Message:
    """To the owner of a webhook that the registry gave up."""
    return _letter(
        to,
        "A webhook was disabled",
        f"Hello {name},\n\n"
        f"the webhook that {registry} sends to\n\n"
        f"{url}\n\n"
        f"was disabled. {reason}\n\n"
        "Once the receiver is well again, test the webhook and enable it. What could not be"
        " delivered until now can be for two weeks; what happens meanwhile is not told to it.",
    )


def _letter(to: str, subject: str, text: str) -> Message:
    return Message(to, f"OpenRegistry: {subject[0].lower()}{subject[1:]}", f"{text}\n")
