"""`openregistry webhook` and `openregistry trigger`: who is told of what happens here, and who may
start something."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chalicelib.cli import CommandError, Commands, add, as_json, group, placed
from chalicelib.hosts import opened_context

if TYPE_CHECKING:
    from chalicelib.context import Context
    from chalicelib.metadata.grants import Place

_LISTED = 100


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add these commands."""
    webhooks = group(commands, "webhook", "say who is told of what happens")
    parser = placed(
        add(webhooks, "add", add_webhook, "have events told to a URL; prints the secret")
    )
    parser.add_argument("url", metavar="URL")
    parser.add_argument(
        "--event", action="append", dest="events", required=True, metavar="KIND",
        help="push, pull, delete, tag, scan, quota or retention; may be given several times",
    )  # fmt: skip
    parser.add_argument("--format", default="cloudevents", help="cloudevents or docker")
    placed(add(webhooks, "list", list_webhooks, "list webhooks"))
    one: tuple[tuple[str, Callable[..., int], str], ...] = (
        ("enable", enable_webhook, "tell a webhook of events again"),
        ("disable", disable_webhook, "tell a webhook of nothing for now"),
        ("rotate", rotate_webhook, "give a webhook another secret; the former signs too for a day"),
        ("remove", remove_webhook, "take a webhook away"),
        ("test", test_webhook, "send an event that only tests the webhook"),
        ("deliveries", list_deliveries, "list what a webhook was told, the newest first"),
    )
    for name, run, text in one:
        placed(add(webhooks, name, run, text)).add_argument("id", metavar="ID")
    parser = placed(
        add(webhooks, "delivery", show_delivery, "show what was sent, and what came back")
    )
    parser.add_argument("id", metavar="ID")
    parser.add_argument("delivery", metavar="DELIVERY")
    parser = placed(add(webhooks, "redeliver", redeliver, "send an event once more"))
    parser.add_argument("id", metavar="ID")
    parser.add_argument("delivery", metavar="DELIVERY")

    triggers = group(commands, "trigger", "let signed messages start something")
    parser = placed(
        add(triggers, "add", add_trigger, "make a trigger; prints its URL and its secret")
    )
    parser.add_argument("starts", metavar="WHAT", help="retention")
    placed(add(triggers, "list", list_triggers, "list triggers"))
    placed(add(triggers, "remove", remove_trigger, "take a trigger away")).add_argument(
        "id", metavar="ID"
    )


def add_webhook(options: argparse.Namespace) -> int:
    """Add a webhook."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.registry import webhooks

    with _opened(options) as (context, place):
        made = webhooks.create(
            context, place, options.url, options.events, options.format, by=OPERATOR
        )
    answer = {**made.webhook._asdict(), "secret": made.secret}
    sentence = f"{made.webhook.id} is told; its secret, shown this once: {made.secret}"
    return _print(options, answer, sentence)


def list_webhooks(options: argparse.Namespace) -> int:
    """List webhooks."""
    from chalicelib.metadata import webhooks

    with _opened(options) as (context, place):
        found = webhooks.listed(context.database, place, "", _LISTED)
    lines = [
        f"{each.id}  {_state(each)}  {','.join(each.events)}  {each.format}  {each.url}"
        for each in found
    ]
    return _print(options, [each._asdict() for each in found], "\n".join(lines))


def enable_webhook(options: argparse.Namespace) -> int:
    """Enable a webhook."""
    return _switch(options, enabled=True)


def disable_webhook(options: argparse.Namespace) -> int:
    """Disable a webhook."""
    return _switch(options, enabled=False)


def rotate_webhook(options: argparse.Namespace) -> int:
    """Give a webhook another secret."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.registry import webhooks

    with _opened(options) as (context, place):
        secret = webhooks.rotate(context, place, options.id, by=OPERATOR)
    if secret is None:
        raise _absent(options)
    return _print(options, {"id": options.id, "secret": secret}, f"shown this once: {secret}")


def remove_webhook(options: argparse.Namespace) -> int:
    """Take a webhook away."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.registry import webhooks

    with _opened(options) as (context, place):
        if not webhooks.remove(context, place, options.id, by=OPERATOR):
            raise _absent(options)
    return _print(options, {"id": options.id, "removed": True}, f"{options.id} is gone")


def test_webhook(options: argparse.Namespace) -> int:
    """Test a webhook."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.registry import webhooks

    with _opened(options) as (context, place):
        delivery = webhooks.test(context, place, options.id, by=OPERATOR)
    if delivery is None:
        raise _absent(options)
    return _print(options, {"id": options.id, "delivery": delivery}, f"delivery {delivery}")


def list_deliveries(options: argparse.Namespace) -> int:
    """List deliveries."""
    from chalicelib.metadata import webhooks

    with _opened(options) as (context, place):
        if webhooks.find(context.database, place, options.id) is None:
            raise _absent(options)
        found = webhooks.deliveries(context.database, options.id, None, _LISTED)
    lines = [
        f"{each.id}  {each.created_at:%Y-%m-%d %H:%M:%S}  {each.state:9}  {each.event['kind']:9}"
        f"  {each.attempts:2}  {each.event['repository']}"
        for each in found
    ]
    return _print(options, [each._asdict() for each in found], "\n".join(lines))


def show_delivery(options: argparse.Namespace) -> int:
    """Show a delivery."""
    from chalicelib.metadata import webhooks

    with _opened(options) as (context, place):
        if webhooks.find(context.database, place, options.id) is None:
            raise _absent(options)
        found = webhooks.delivery(context.database, options.id, options.delivery)
        if found is None:
            raise CommandError(f"{options.id} has no delivery {options.delivery}, or not any more")
        history = webhooks.attempts(context.database, options.delivery)
    answer = {**found._asdict(), "history": [each._asdict() for each in history]}
    told = [
        f"{each.at:%Y-%m-%d %H:%M:%S}  {each.seconds:.2f} s  {each.status or '-'}  {each.error}\n"
        f"{each.request}\n\n{each.answer}\n"
        for each in history
    ]
    return _print(options, answer, "\n".join([found.state, *told]))


def redeliver(options: argparse.Namespace) -> int:
    """Send an event once more."""
    from chalicelib.metadata import webhooks as rows
    from chalicelib.registry import webhooks

    with _opened(options) as (context, place):
        if rows.find(context.database, place, options.id) is None:
            raise _absent(options)
        if not webhooks.redeliver(context, options.id, options.delivery):
            raise CommandError(f"{options.delivery} is on its way already, or there is none")
    answer = {"id": options.id, "delivery": options.delivery}
    return _print(options, answer, f"{options.delivery} is sent again")


def add_trigger(options: argparse.Namespace) -> int:
    """Make a trigger."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.jobs import triggers

    with _opened(options) as (context, place):
        made = triggers.create(context, place, options.starts, by=OPERATOR)
    answer = {**made.trigger._asdict(), "url": made.url, "secret": made.secret}
    return _print(options, answer, f"{made.url}\nits secret, shown this once: {made.secret}")


def list_triggers(options: argparse.Namespace) -> int:
    """List triggers."""
    from chalicelib.jobs import triggers
    from chalicelib.metadata import triggers as rows

    with _opened(options) as (context, place):
        found = rows.listed(context.database, place, "", _LISTED)
        answer = [{**each._asdict(), "url": triggers.url(context, each.id)} for each in found]
    lines = [f"{each['id']}  {each['starts']}  {each['url']}" for each in answer]
    return _print(options, answer, "\n".join(lines))


def remove_trigger(options: argparse.Namespace) -> int:
    """Take a trigger away."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.jobs import triggers

    with _opened(options) as (context, place):
        if not triggers.remove(context, place, options.id, by=OPERATOR):
            raise CommandError(f"there is no trigger {options.id} here")
    return _print(options, {"id": options.id, "removed": True}, f"{options.id} is gone")


@contextmanager
def _opened(options: argparse.Namespace) -> "Iterator[tuple[Context, Place]]":
    """What functions are given, and what the command is about."""
    from chalicelib.metadata import accounts, repositories
    from chalicelib.metadata.grants import Place

    with opened_context() as context:
        if options.repository is not None:
            repository = repositories.find(context.database, options.repository)
            if repository is None:
                raise CommandError(f"there is no repository {options.repository}")
            yield context, Place(repository=repository.id)
            return
        account = accounts.by_name(context.database, options.account)
        if account is None or account.kind == "robot":
            raise CommandError(f"there is no user and no organisation {options.account}")
        yield context, Place(namespace=account.id)


def _switch(options: argparse.Namespace, *, enabled: bool) -> int:
    from chalicelib.identity.users import OPERATOR
    from chalicelib.registry import webhooks

    with _opened(options) as (context, place):
        found = webhooks.change(context, place, options.id, enabled=enabled, by=OPERATOR)
    if found is None:
        raise _absent(options)
    return _print(options, found._asdict(), f"{options.id} is {_state(found)}")


def _state(webhook: Any) -> str:
    if webhook.enabled:
        return "failing" if webhook.failing_since else "enabled"
    return "disabled"


def _absent(options: argparse.Namespace) -> CommandError:
    return CommandError(f"there is no webhook {options.id} here")


def _print(options: argparse.Namespace, answer: Any, sentence: str) -> int:
    text = as_json(answer) if options.json else sentence
    if text:
        print(text)
    return 0
