import base64
import hashlib
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from chalicelib.http import Unavailable
from chalicelib.identity import github as module
from chalicelib.identity.external import Person, SignInRefused
from chalicelib.identity.github import GitHub, looks_like
from chalicelib.outbound import Outbound
from chalicelib.settings import Settings
from tests.identity.doubles.browser import query, redirected
from tests.identity.doubles.github import (
    Answer,
    App,
    GitHubDouble,
    User,
    login_limit,
    primary_limit,
    secondary_limit,
    suspended,
)

CALLBACK = "https://registry.example.org/api/v1/sign-in/github"
MONA = User(
    583231,
    "mona",
    (
        {"email": "mona@work.example", "primary": False, "verified": True, "visibility": None},
        {"email": "mona@home.example", "primary": True, "verified": True, "visibility": "private"},
    ),
)
VERIFIER = secrets.token_urlsafe(32)
CHALLENGE = (
    base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")
)


@pytest.fixture
def double() -> Iterator[GitHubDouble]:
    with GitHubDouble() as running:
        running.user = MONA
        yield running


@pytest.fixture
def app(double: GitHubDouble) -> App:
    return double.register("Iv1.ours", CALLBACK)


@pytest.fixture
def github(double: GitHubDouble, app: App) -> GitHub:
    return connected(double, app.client_id, app.client_secret)


def connected(double: GitHubDouble, client_id: str = "", client_secret: str = "") -> GitHub:
    settings = Settings(
        github_url=double.url,
        github_api_url=double.api_url,
        github_client_id=client_id,
        github_client_secret=client_secret,
    )
    return GitHub(settings, Outbound([double.url]))


def signed_in(github: GitHub, state: str = "state") -> str:
    """The code with which the browser comes back."""
    callback = redirected(github.authorize_url(state, CHALLENGE, CALLBACK))
    assert callback.startswith(CALLBACK + "?")
    brought = query(callback)
    assert brought["state"] == state
    return brought["code"]


# The web flow.


def test_signs_a_person_in(github: GitHub, double: GitHubDouble) -> None:
    token = github.exchange(signed_in(github, "a state & more"), VERIFIER, CALLBACK)
    assert github.person(token) == Person(double.url, "583231", "mona", "mona@home.example")
    assert double.tokens[token].scopes == {"read:user", "user:email"}


def test_asks_with_a_challenge_of_s256(github: GitHub, app: App) -> None:
    asked = query(github.authorize_url("s", CHALLENGE, CALLBACK))
    assert asked == {
        "client_id": app.client_id,
        "redirect_uri": CALLBACK,
        "scope": "read:user user:email",
        "state": "s",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
    }


def test_the_secret_is_not_in_the_browser(github: GitHub, app: App) -> None:
    assert app.client_secret not in github.authorize_url("s", CHALLENGE, CALLBACK)


def test_refuses_a_wrong_code(github: GitHub) -> None:
    with pytest.raises(SignInRefused):
        github.exchange("0" * 20, VERIFIER, CALLBACK)


def test_refuses_a_replayed_code(github: GitHub) -> None:
    code = signed_in(github)
    github.exchange(code, VERIFIER, CALLBACK)
    with pytest.raises(SignInRefused):
        github.exchange(code, VERIFIER, CALLBACK)


def test_refuses_an_old_code(github: GitHub, double: GitHubDouble) -> None:
    code = signed_in(github)
    double.now = lambda: time.time() + 601
    with pytest.raises(SignInRefused):
        github.exchange(code, VERIFIER, CALLBACK)


@pytest.mark.parametrize(
    "verifier",
    ["", VERIFIER[:-1], secrets.token_urlsafe(32)],
    ids=["none", "shorter", "another"],
)
def test_refuses_a_wrong_verifier(github: GitHub, verifier: str) -> None:
    code = signed_in(github)
    with pytest.raises(SignInRefused):
        github.exchange(code, verifier, CALLBACK)


def test_refuses_a_code_of_another_app(github: GitHub, double: GitHubDouble) -> None:
    other = double.register("Iv1.other", CALLBACK)
    code = signed_in(connected(double, other.client_id, other.client_secret))
    with pytest.raises(SignInRefused):
        github.exchange(code, VERIFIER, CALLBACK)


def test_refuses_who_has_verified_no_primary_address(github: GitHub, double: GitHubDouble) -> None:
    double.user = User(7, "new", ({"email": "n@x.example", "primary": True, "verified": False},))
    with pytest.raises(SignInRefused, match="Verify your primary email address at GitHub"):
        github.exchange(signed_in(github), VERIFIER, CALLBACK)


def test_tells_the_operator_of_a_wrong_secret(double: GitHubDouble, app: App) -> None:
    github = connected(double, app.client_id, "wrong")
    with pytest.raises(Unavailable, match="GITHUB_CLIENT_SECRET"):
        github.exchange(signed_in(github), VERIFIER, CALLBACK)


def test_tells_the_operator_of_another_callback(github: GitHub) -> None:
    code = signed_in(github)
    with pytest.raises(Unavailable, match="callback URL"):
        github.exchange(code, VERIFIER, CALLBACK + "/other")


def test_a_person_who_denies_brings_no_code(github: GitHub, double: GitHubDouble) -> None:
    double.denies = True
    brought = query(redirected(github.authorize_url("state", CHALLENGE, CALLBACK)))
    assert (brought["error"], brought["state"]) == ("access_denied", "state")
    assert "code" not in brought


# Who it is.


def test_has_no_address_that_is_withheld(github: GitHub, double: GitHubDouble) -> None:
    double.withheld = frozenset({"user:email"})
    token = github.exchange(signed_in(github), VERIFIER, CALLBACK)
    assert github.person(token) == Person(double.url, "583231", "mona", "")


@pytest.mark.parametrize(
    "emails",
    [
        [],
        [{"email": "a@b.example", "primary": True, "verified": False}],
        [{"email": "a@b.example", "primary": False, "verified": True}],
        [
            {"email": "a@b.example", "primary": False, "verified": True},
            {"email": "c@d.example", "primary": True, "verified": False},
        ],
        [{"email": "a@b.example", "primary": True, "verified": "false"}],
        [{"email": None, "primary": True, "verified": True}],
    ],
)
def test_takes_the_primary_address_where_it_is_verified_alone(
    github: GitHub, double: GitHubDouble, app: App, emails: list[dict[str, object]]
) -> None:
    token = double.grant(app, User(7, "ada", emails), "user:email")
    assert github.person(token) == Person(double.url, "7", "ada", "")


def test_refuses_a_token_that_was_revoked_meanwhile(github: GitHub, double: GitHubDouble) -> None:
    token = github.exchange(signed_in(github), VERIFIER, CALLBACK)
    del double.tokens[token]
    with pytest.raises(SignInRefused):
        github.person(token)


# A token as a password.


@pytest.mark.parametrize("prefix", ["ghp_", "github_pat_"])
def test_a_personal_token_shows_its_holder(double: GitHubDouble, prefix: str) -> None:
    github = connected(double)
    token = double.personal_token(MONA, prefix)
    assert looks_like(token)
    assert github.holder(token) == Person(double.url, "583231", "mona", "")
    assert double.requests == [("GET", "/api/v3/user")]


@pytest.mark.parametrize("prefix", ["gho_", "ghu_"])
def test_a_token_granted_to_our_app_shows_who_granted_it(double: GitHubDouble, prefix: str) -> None:
    app = double.register("Iv1.app", CALLBACK, prefix)
    github = connected(double, app.client_id, app.client_secret)
    token = double.grant(app, MONA)
    assert looks_like(token)
    assert github.holder(token) == Person(double.url, "583231", "mona", "")


@pytest.mark.parametrize("prefix", ["gho_", "ghu_"])
def test_refuses_a_token_granted_to_another_app(
    github: GitHub, double: GitHubDouble, prefix: str
) -> None:
    other = double.register("Iv1.other", "https://other.example/", prefix)
    token = double.grant(other, MONA, "read:user", "user:email")
    with pytest.raises(SignInRefused, match="granted to this registry"):
        github.holder(token)
    assert ("GET", "/api/v3/user") not in double.requests


@pytest.mark.parametrize("prefix", ["gho_", "ghu_"])
def test_refuses_tokens_of_apps_where_there_is_no_app(double: GitHubDouble, prefix: str) -> None:
    token = double.grant(double.register("Iv1.other", CALLBACK, prefix), MONA)
    with pytest.raises(SignInRefused):
        connected(double).holder(token)
    assert double.requests == []


def test_refuses_what_github_says_of_another_app(github: GitHub, double: GitHubDouble) -> None:
    user = {"id": 583231, "login": "mona"}
    double.trouble = Answer(200, {"app": {"client_id": "Iv1.other"}, "user": user})
    with pytest.raises(SignInRefused):
        github.holder("gho_" + "0" * 36)


@pytest.mark.parametrize("prefix", ["ghp_", "github_pat_", "gho_", "ghu_"])
def test_refuses_an_unknown_token(github: GitHub, prefix: str) -> None:
    with pytest.raises(SignInRefused):
        github.holder(prefix + "0" * 40)


@pytest.mark.parametrize("prefix", ["ghs_", "ghr_"])
def test_refuses_tokens_that_stand_for_no_person(
    github: GitHub, double: GitHubDouble, prefix: str
) -> None:
    token = double.personal_token(MONA, prefix)
    assert looks_like(token)
    with pytest.raises(SignInRefused, match="OpenID token"):
        github.holder(token)
    assert double.requests == []


def test_refuses_the_token_of_a_suspended_account(github: GitHub, double: GitHubDouble) -> None:
    double.trouble = suspended()
    with pytest.raises(SignInRefused):
        github.holder("ghp_" + "0" * 36)


@pytest.mark.parametrize(
    "password",
    [
        "",
        "ghp_",
        "ghp_short",
        "a ghp_" + "0" * 36,
        "ghx_" + "0" * 36,
        "GHP_" + "0" * 36,
        "0" * 40,
        "ghp_" + "0" * 36 + "\r\nHost: inside",
        "ghp_" + "0" * 36 + "\n",
        "ghp_" + "0" * 2000,
        "ghp_" + "ä" * 36,
    ],
)
def test_other_passwords_do_not_look_like_tokens(
    github: GitHub, double: GitHubDouble, password: str
) -> None:
    assert not looks_like(password)
    with pytest.raises(SignInRefused):
        github.holder(password)
    assert double.requests == []


# What is remembered.


@pytest.mark.parametrize("prefix", ["ghp_", "gho_"])
def test_remembers_a_holder_for_a_while(
    github: GitHub, double: GitHubDouble, app: App, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.REMEMBERED == 60
    monkeypatch.setattr(module, "REMEMBERED", 0.5)
    token = double.personal_token(MONA) if prefix == "ghp_" else double.grant(app, MONA)
    for _ in range(3):
        assert github.holder(token).name == "mona"
    assert len(double.requests) == 1
    del double.tokens[token]
    time.sleep(0.6)
    with pytest.raises(SignInRefused):
        github.holder(token)


def test_does_not_remember_failures(github: GitHub, double: GitHubDouble) -> None:
    token = "ghp_" + "0" * 36
    for _ in range(2):
        with pytest.raises(SignInRefused):
            github.holder(token)
    double.trouble = Answer(502, b"<h1>Bad Gateway")
    with pytest.raises(Unavailable):
        github.holder(token)
    double.trouble = None
    double.tokens[token] = double.tokens[double.personal_token(MONA)]
    assert github.holder(token).name == "mona"
    assert len(double.requests) == 4


def test_holds_few_tokens_and_none_itself(
    github: GitHub, double: GitHubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    tokens = [double.personal_token(User(number, f"user-{number}")) for number in range(5)]
    assert [github.holder(token).subject for token in tokens] == ["0", "1", "2", "3", "4"]
    assert len(github._holders) == 3
    assert not any(token in repr(vars(github)) for token in tokens)
    github.holder(tokens[4])
    assert len(double.requests) == 5
    github.holder(tokens[0])
    assert len(double.requests) == 6


def test_threads_share_it(github: GitHub, double: GitHubDouble) -> None:
    tokens = [double.personal_token(User(number, f"user-{number}")) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: github.holder(tokens[index % 8]), range(64)))
    assert [person.subject for person in found] == [str(index % 8) for index in range(64)]


# A GitHub that does not answer.


TROUBLE = [
    primary_limit(403),
    primary_limit(429),
    secondary_limit(403),
    secondary_limit(429),
    login_limit(),
    Answer(500, {"message": "Server Error"}),
    Answer(502, b"<h1>Bad Gateway"),
    Answer(503, {"message": "Service unavailable"}),
    Answer(200, b"<h1>Unicorn!"),
    Answer(200, []),
    Answer(200, {}),
    Answer(302, None, {"Location": "https://elsewhere.example/"}),
]


@pytest.mark.parametrize("trouble", TROUBLE)
def test_out_of_order_is_no_refusal(github: GitHub, double: GitHubDouble, trouble: Answer) -> None:
    code = signed_in(github)
    double.trouble = trouble
    for ask in (
        lambda: github.exchange(code, VERIFIER, CALLBACK),
        lambda: github.person("gho_" + "0" * 36),
        lambda: github.holder("ghp_" + "0" * 36),
        lambda: github.holder("gho_" + "0" * 36),
    ):
        with pytest.raises(Unavailable):
            ask()


def test_unreachable_is_no_refusal(double: GitHubDouble, github: GitHub) -> None:
    token = double.personal_token(MONA)
    double.__exit__(None, None, None)
    with pytest.raises(Unavailable, match="does not answer"):
        github.holder(token)


def test_a_wrong_secret_is_no_refusal(double: GitHubDouble, app: App) -> None:
    github = connected(double, app.client_id, "wrong")
    with pytest.raises(Unavailable, match="GITHUB_CLIENT_SECRET"):
        github.holder(double.grant(app, MONA))
