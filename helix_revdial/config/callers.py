# -*- test-case-name: tests.test_config -*-
"""Who may call, and how often."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from .kinds import CallRate, Count, Section, snake


class ClientCertificateSection(Section, frozen=True, rename=snake):
    """Whose a client certificate is: exactly one of the first two keys says which."""

    fingerprint: str | None = None
    """C{sha256:…}, of the whole certificate."""

    subjectAltName: str | None = None
    """C{dns:…}, C{uri:…}, C{email:…} or C{ip:…}: a name that the certificate is for."""

    kind: Literal["runner", "user"] = "runner"
    patterns: tuple[str, ...] = ()
    """For a runner: the keys that it may register."""

    user: str | None = None
    role: Literal["admin", "operator", "viewer"] | None = None
    tenant: str = "default"


class IssuerSection(Section, frozen=True, rename=snake):
    """An issuer of JSON web tokens that are taken in the place of our own."""

    issuer: str
    """The C{iss} of its tokens."""

    audience: str
    """What its tokens have as C{aud}."""

    algorithm: str
    """The one algorithm that it signs with: C{HS256}, C{RS256}, C{ES256}, C{EdDSA}…"""

    secretFile: str | None = None
    """For HS algorithms: the file that holds the secret."""

    jwksUrl: str | None = None
    """For the others: C{https://…}, where its public keys are."""

    jwksCa: str | None = None
    """PEM file of the authorities that are believed there, instead of the platform's."""

    tenants: tuple[str, ...] = ()
    """The tenants that its tokens may name; any, if there are none."""

    defaultRole: Literal["admin", "operator", "viewer"] | None = None
    """For tokens that name no role that is known here; without it they are refused."""

    clockSkew: Annotated[float, msgspec.Meta(ge=0, le=300)] = 30.0
    """Seconds by which its clock may be ahead. An expiry is exact."""


class AccessSection(Section, frozen=True, rename=snake):
    """The first tokens."""

    adminTokenFile: str | None = None
    """Where the first admin token goes (mode 0600); C{admin.token} in the state directory."""

    importRunnerToken: bool = True
    """
    Whether the C{RUNNER_TOKEN} of the environment, where there is one, is
    imported as a runner token, so that existing hosts keep working.
    """

    runnerTokenPatterns: tuple[str, ...] = ("wolf-*", "moonlight-*", "hydra-*")
    """What an imported C{RUNNER_TOKEN} may register."""

    clientCertificate: tuple[ClientCertificateSection, ...] = ()
    """Who asks with a client certificate and no token."""

    issuer: tuple[IssuerSection, ...] = ()
    """Whose JSON web tokens are taken."""


class RateOverrideSection(Section, frozen=True, rename=snake):
    """What somebody in particular may; exactly one of the first three keys."""

    tenant: str | None = None
    project: str | None = None
    """C{TENANT/PROJECT}."""

    user: str | None = None
    """C{TENANT/USER}."""

    perSecond: CallRate = 0.0
    burst: Count = 1


class RateLimitsSection(Section, frozen=True, rename=snake):
    """How often users may call the API; rates of 0 are no limit."""

    userPerSecond: CallRate = 1000.0
    """Calls of one user in a second, over any longer time."""

    userBurst: Count = 2000
    """Calls of one user at once, after a quiet time."""

    projectPerSecond: CallRate = 0.0
    projectBurst: Count = 2000
    tenantPerSecond: CallRate = 0.0
    tenantBurst: Count = 2000

    override: tuple[RateOverrideSection, ...] = ()
    """Who has a rate of its own."""
