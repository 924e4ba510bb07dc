"""The services that know people and workloads, as this process asks them: one of each."""

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chalicelib.identity.github import GitHub
    from chalicelib.identity.issuers import Issuers
    from chalicelib.identity.openid import OpenID
    from chalicelib.identity.spiffe import TrustBundles
    from chalicelib.outbound import Outbound
    from chalicelib.settings import Settings


class Federation:
    """Each is made, and its module imported, when it is first asked for. Threads may share it."""

    def __init__(self, settings: "Settings") -> None:
        self._settings = settings

    @cached_property
    def outbound(self) -> "Outbound":
        """What all of them ask by."""
        from chalicelib.outbound import Outbound

        return Outbound(self._settings.private_issuers)

    @cached_property
    def issuers(self) -> "Issuers":
        """Whoever issues OpenID tokens."""
        from chalicelib.identity.issuers import Issuers

        return Issuers(self.outbound)

    @cached_property
    def bundles(self) -> "TrustBundles":
        """The trust domains of SPIFFE_BUNDLES."""
        from chalicelib.identity.spiffe import TrustBundles

        return TrustBundles(self._settings.spiffe_bundles, self.outbound)

    @cached_property
    def github(self) -> "GitHub":
        """GitHub, or an Enterprise Server."""
        from chalicelib.identity.github import GitHub

        return GitHub(self._settings, self.outbound)

    @cached_property
    def openid(self) -> "OpenID":
        """The provider of OIDC_ISSUER."""
        from chalicelib.identity.openid import OpenID

        return OpenID(self._settings, self.outbound, self.issuers)

    @cached_property
    def providers(self) -> tuple[str, ...]:
        """Those that people may sign in with, as far as the settings name them."""
        settings = self._settings
        configured = {
            "github": settings.github_client_id and settings.github_client_secret,
            "openid": settings.oidc_issuer and settings.oidc_client_id,
        }
        return tuple(name for name, known in configured.items() if known)
