"""`openregistry tag`, `immutable-tags` and `retention`: where tags were, which stay as they are,
and which are kept."""

import argparse
from typing import TYPE_CHECKING, Any

from chalicelib.cli import (
    ID,
    CommandError,
    Commands,
    add,
    as_json,
    group,
    placed,
    print_answer,
    whole,
)
from chalicelib.hosts import opened_context, opened_database
from chalicelib.settings import parse_seconds

if TYPE_CHECKING:
    from chalicelib.jobs.retention import Report, Verdict
    from chalicelib.metadata.database import Database
    from chalicelib.metadata.grants import Place
    from chalicelib.metadata.retention import Policy

_RULES = ("keep_last", "keep_newer", "keep_matching", "keep_pulled", "untagged_after")


def register(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add this room's commands."""
    tags = group(commands, "tag", "look where tags were, and have them back")
    parser = add(tags, "history", show_history, "show where tags were, the newest moves first")
    parser.add_argument("repository", metavar="REPOSITORY")
    parser.add_argument("tag", metavar="TAG", nargs="?", default="", help="this one alone")
    parser.add_argument(
        "--limit", type=whole(1, 1_000_000), default=100, help="how many moves (100)"
    )
    parser = add(
        tags, "restore", restore_tag, "point a tag to where it was before it moved or was deleted"
    )
    parser.add_argument("repository", metavar="REPOSITORY")
    parser.add_argument("tag", metavar="TAG")
    parser.add_argument("--digest", help="where it was once; without it where it was last")

    immutable = group(commands, "immutable-tags", "keep tags from being moved and deleted")
    parser = placed(add(immutable, "add", add_rule, "keep tags that match a pattern as they are"))
    parser.add_argument("pattern", metavar="PATTERN", help="like v*; * stands for any characters")
    parser.add_argument(
        "--except",
        dest="exceptions",
        action="append",
        default=[],
        metavar="PATTERN",
        help="but not these; may be repeated",
    )
    placed(add(immutable, "list", list_rules, "list the rules of a repository or an account"))
    parser = placed(add(immutable, "remove", remove_rule, "let tags be moved and deleted again"))
    parser.add_argument("id", type=ID, metavar="ID")

    retention = group(commands, "retention", "say which tags and manifests are kept")
    _add_rules(placed(add(retention, "set", set_policy, "say what is kept, in place of before")))
    placed(add(retention, "show", show_policy, "show what is kept"))
    placed(add(retention, "unset", unset_policy, "keep everything, or what the account says"))
    parser = add(retention, "run", run_retention, "remove now what is not kept")
    parser.add_argument("--repository", metavar="NAME", help="from this one alone")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="remove nothing: tell what would go and why the rest stays, by the policy in force or,"
        " for one repository, by the rules that are given here",
    )
    _add_rules(parser)


def _add_rules(parser: argparse.ArgumentParser) -> None:
    """The rules of a policy. One that is not given is None."""
    parser.add_argument(
        "--keep-last", type=whole(1, 1_000_000), metavar="N", help="the tags pushed last"
    )
    parser.add_argument("--keep-newer", type=_time, metavar="TIME", help="pushed within, like 30d")
    parser.add_argument(
        "--keep-matching",
        action="append",
        metavar="PATTERN",
        help="tags like v*; may be repeated",
    )
    parser.add_argument("--keep-pulled", type=_time, metavar="TIME", help="pulled within, like 90d")
    parser.add_argument(
        "--untagged-after",
        type=_time_or_never,
        metavar="TIME|never",
        help="remove manifests that had no tag for so long; without it once the grace is over",
    )


def show_history(options: argparse.Namespace) -> int:
    """Show where tags were."""
    from chalicelib import digests
    from chalicelib.registry import tag_history

    with opened_database() as database:
        found = tag_history.page(database, options.repository, options.tag, None, options.limit)
    moves = [
        {
            "id": each.id,
            "tag": each.name,
            "digest": None if each.digest is None else digests.unpack(each.digest),
            "exists": each.there,
            "subject": each.subject,
            "by": each.by,
            "moved_at": each.moved_at,
        }
        for each in found
    ]
    if options.json:
        print(as_json(moves))
        return 0
    for move in moves:
        where = move["digest"] or "deleted"
        gone = "" if move["exists"] or not move["digest"] else "  (gone)"
        who = move["by"] or move["subject"] or "-"
        print(f"{move['moved_at']:%Y-%m-%d %H:%M:%S}  {move['tag']:24} {where}  {who}{gone}")
    return 0


def restore_tag(options: argparse.Namespace) -> int:
    """Have a tag back."""
    from chalicelib import digests
    from chalicelib.identity.users import OPERATOR
    from chalicelib.registry import tag_history

    with opened_database() as database:
        wanted = None if options.digest is None else digests.pack(options.digest)
        done = tag_history.restore(database, options.repository, options.tag, wanted, by=OPERATOR)
    digest = digests.unpack(done.digest)
    previous = None if done.previous is None else digests.unpack(done.previous)
    answer = {"tag": options.tag, "digest": digest, "previous": previous}
    print_answer(options, answer, f"{options.tag} points to {digest}")
    return 0


def add_rule(options: argparse.Namespace) -> int:
    """Keep tags as they are."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.registry import immutable_tags

    with opened_database() as database:
        place, account = _place(database, options)
        rule = immutable_tags.create(
            database, place, account, options.pattern, options.exceptions, by=OPERATOR
        )
    answer = {"id": rule.id, "pattern": rule.pattern, "exceptions": rule.exceptions}
    print_answer(options, answer, f"rule {rule.id} keeps tags like {rule.pattern} as they are")
    return 0


def list_rules(options: argparse.Namespace) -> int:
    """List rules."""
    from chalicelib.metadata import immutable_tags
    from chalicelib.registry.immutable_tags import MOST_RULES

    with opened_database() as database:
        place, _ = _place(database, options)
        found = immutable_tags.listed(database, place, 0, MOST_RULES)
    if options.json:
        print(as_json([each._asdict() for each in found]))
        return 0
    for each in found:
        but = f"  except {', '.join(each.exceptions)}" if each.exceptions else ""
        print(f"{each.id:8}  {each.pattern}{but}")
    return 0


def remove_rule(options: argparse.Namespace) -> int:
    """Take a rule away."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.registry import immutable_tags

    with opened_database() as database:
        place, account = _place(database, options)
        if not immutable_tags.remove(database, place, account, options.id, by=OPERATOR):
            raise CommandError(f"there is no rule {options.id} here")
    print_answer(options, {"id": options.id, "removed": True}, f"rule {options.id} is removed")
    return 0


def set_policy(options: argparse.Namespace) -> int:
    """Say what is kept."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.jobs import retention

    policy = _policy(options)
    with opened_database() as database:
        place, account = _place(database, options)
        retention.set_policy(database, place, account, policy, by=OPERATOR)
    print_answer(options, policy._asdict(), _told(policy))
    return 0


def show_policy(options: argparse.Namespace) -> int:
    """Show what is kept: of a repository without a policy of its own, by its account's."""
    from chalicelib.metadata import retention

    with opened_database() as database:
        place, _ = _place(database, options)
        if place.repository is None:
            policy = retention.find(database, place)
        else:
            held = retention.read(database, place.repository)
            policy = None if held is None else held.policy
    if policy is None:
        raise CommandError("there is no policy: everything is kept")
    print_answer(options, policy._asdict(), _told(policy))
    return 0


def unset_policy(options: argparse.Namespace) -> int:
    """Take a policy away."""
    from chalicelib.identity.users import OPERATOR
    from chalicelib.jobs import retention

    with opened_database() as database:
        place, account = _place(database, options)
        if not retention.remove_policy(database, place, account, by=OPERATOR):
            raise CommandError("there is no policy to take away")
    print_answer(options, {"unset": True}, "the policy is taken away")
    return 0


def run_retention(options: argparse.Namespace) -> int:
    """Remove what is not kept, or tell what would be."""
    from chalicelib.jobs import retention
    from chalicelib.metadata.retention import repositories

    given = any(getattr(options, name) is not None for name in _RULES)
    if given and not (options.dry_run and options.repository):
        raise CommandError("rules can be tried with --dry-run and --repository; see retention set")
    policy = _policy(options) if given else None
    with opened_context() as context:
        if policy is not None:
            retention.check(policy)
        if options.repository:
            place, _ = _place(context.database, options)
            chosen = [place.repository]
        else:
            chosen = [number for number, _ in repositories(context.database)]
        reports = []
        for number in chosen:
            if number is None:
                continue
            if options.dry_run:
                plan = retention.plan(context, number, policy)
                done = [] if plan is None else [plan]
            else:
                done = list(retention.batches(context, number))
            if not done and options.repository:
                raise CommandError(f"{options.repository} has no policy: everything is kept")
            reports += [_joined(done)] if done else []
    if options.json:
        print(as_json([_report(each) for each in reports]))
        return 0
    for report in reports:
        _show(report, dry_run=options.dry_run)
    return 0


def _joined(reports: "list[Report]") -> "Report":
    """What several batches of one repository came to."""
    return reports[0]._replace(
        tags=[each for report in reports for each in report.tags],
        manifests=[each for report in reports for each in report.manifests],
    )


def _report(report: "Report") -> dict[str, Any]:
    from chalicelib import digests

    return {
        "repository": report.repository,
        "policy": report.policy._asdict(),
        "removed": [_verdict(each) for each in report.tags if not each.kept],
        "kept": [_verdict(each) for each in report.tags if each.kept],
        "manifests": [digests.unpack(each) for each in report.manifests],
    }


def _verdict(verdict: "Verdict") -> dict[str, Any]:
    from chalicelib import digests

    tag = verdict.tag
    return {
        "tag": tag.name,
        "digest": digests.unpack(tag.digest),
        "pushed_at": tag.pushed_at,
        "pulled_at": tag.pulled_at,
        "why": verdict.why,
    }


def _show(report: "Report", *, dry_run: bool) -> None:
    from chalicelib import digests

    verb = "would go" if dry_run else "removed"
    removed = [each for each in report.tags if not each.kept]
    stay = f", {len(report.tags) - len(removed)} tags stay" if dry_run else ""
    print(
        f"{report.repository}: {len(removed)} tags and {len(report.manifests)} manifests"
        f" {verb}{stay}"
    )
    for each in report.tags:
        print(f"  {'keep  ' if each.kept else 'remove'}  {each.tag.name:24} {'; '.join(each.why)}")
    for digest in report.manifests:
        print(f"  remove  {digests.unpack(digest)} has no tag")


def _policy(options: argparse.Namespace) -> "Policy":
    from chalicelib.metadata.retention import Policy

    never = options.untagged_after == _NEVER
    return Policy(
        keep_last=options.keep_last,
        keep_newer=options.keep_newer,
        keep_matching=options.keep_matching or [],
        keep_pulled=options.keep_pulled,
        untagged_after=None if never else options.untagged_after or 0,
    )


def _told(policy: "Policy") -> str:
    """A policy in words."""
    kept = []
    if policy.keep_last is not None:
        kept.append(f"the last {policy.keep_last}")
    if policy.keep_newer is not None:
        kept.append(f"those pushed within {policy.keep_newer} s")
    kept += [f"those like {pattern}" for pattern in policy.keep_matching]
    if policy.keep_pulled is not None:
        kept.append(f"those pulled within {policy.keep_pulled} s")
    tags = "; ".join(kept) or "all"
    untagged = (
        "stay"
        if policy.untagged_after is None
        else f"go after {policy.untagged_after} s, and after the grace at least"
    )
    return f"tags that stay: {tags}\nmanifests without a tag: {untagged}"


def _place(database: "Database", options: argparse.Namespace) -> "tuple[Place, int | None]":
    """The place that the options name, and the account in whose namespace it is."""
    from chalicelib.metadata import accounts, repositories
    from chalicelib.metadata.grants import Place

    if options.repository is not None:
        found = repositories.find(database, options.repository)
        if found is None:
            raise CommandError(f"there is no repository {options.repository!r}")
        return Place(repository=found.id), found.account
    account = accounts.by_name(database, options.account)
    if account is None or account.kind == "robot":
        raise CommandError(f"there is no user and no organisation {options.account!r}")
    return Place(namespace=account.id), account.id


_NEVER = -1


def _time(text: str) -> int:
    """Seconds, of a time like 30d."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _time_or_never(text: str) -> int:
    """Seconds, of a time like 7d, or never."""
    return _NEVER if text == "never" else _time(text)
