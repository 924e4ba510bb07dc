"""The account page in a real browser, with GitHub to sign in with."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.accounts import add_user
from tests.conftest import need
from tests.identity.doubles.github import GitHubDouble, User
from tests.servers import Registry, free_port

pytestmark = pytest.mark.long

CHROMIUM = "/usr/bin/chromium"
PASSWORD = "a password of alice's"


@pytest.fixture
def github() -> Iterator[GitHubDouble]:
    with GitHubDouble() as double:
        emails = ({"email": "mona@home.example", "primary": True, "verified": True},)
        double.user = User(583231, "mona", emails)
        yield double


@pytest.fixture
def url(serve: Callable[..., Registry], github: GitHubDouble) -> str:
    port = free_port()
    url = f"http://localhost:{port}"
    app = github.register("Iv1.ours", f"{url}/api/v1/sign-in/github/callback")
    server = serve(
        OPENREGISTRY_ACCESS="accounts",
        OPENREGISTRY_LISTEN=f"127.0.0.1:{port}",
        OPENREGISTRY_PUBLIC_URL=url,
        OPENREGISTRY_SIGN_UP="open",
        OPENREGISTRY_PRIVATE_ISSUERS=github.url,
        OPENREGISTRY_GITHUB_URL=github.url,
        OPENREGISTRY_GITHUB_API_URL=github.api_url,
        OPENREGISTRY_GITHUB_CLIENT_ID=app.client_id,
        OPENREGISTRY_GITHUB_CLIENT_SECRET=app.client_secret,
    )
    add_user(server.settings, "alice", PASSWORD)
    return url


@pytest.fixture
def page(url: str) -> Iterator[Page]:
    need(CHROMIUM, "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(10_000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}/account")
        yield page
        browser.close()
        assert errors == []


def test_signing_in_and_linking(page: Page, url: str, github: GitHubDouble) -> None:
    message = page.locator("#message")
    page.get_by_role("button", name="Sign in with GitHub").click()
    expect(page.locator("#who")).to_have_text("mona")
    assert page.url == f"{url}/account"
    expect(page.locator("#identities li")).to_contain_text(f"583231 at {github.url}")
    page.get_by_role("button", name="Unlink").click()
    expect(message).to_contain_text("last way to sign in")

    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Name", exact=True).first.fill("alice")
    page.get_by_label("Password", exact=True).first.fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.locator("#who")).to_have_text("alice")
    page.get_by_role("button", name="Link GitHub").click()
    expect(message).to_have_text("You are linked to another account here.")
    assert page.url == f"{url}/account"
    github.user = User(2, "alice-at-github")
    page.get_by_role("button", name="Link GitHub").click()
    expect(message).to_have_text(
        "You were not signed in: it took too long, or was begun elsewhere. Try again."
    )
    emails = ({"email": "a@home.example", "primary": True, "verified": True},)
    github.user = User(2, "alice-at-github", emails)
    page.get_by_role("button", name="Link GitHub").click()
    expect(page.locator("#identities li")).to_contain_text(f"2 at {github.url}")
    page.get_by_role("button", name="Unlink").click()
    expect(page.locator("#identities li")).to_have_count(0)
