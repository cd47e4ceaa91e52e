"""Tests for L{helix_revdial.sessions.webhook_secrets}."""

from __future__ import annotations

import base64

from helix_revdial.sessions.webhook_secrets import (
    MAX_LIVE,
    TooManySecrets,
    WebhookSecrets,
    liveSecrets,
    signatureOf,
)
from tests.access.worlds import AccessTestCase
from tests.storage.postgresql import OnPostgreSQL


class SecretTests(AccessTestCase):
    """Made, live side by side, retired."""

    def setUp(self) -> None:
        super().setUp()
        self.secrets = WebhookSecrets(self.database, self.wallClock)

    def live(self, tenant: str = "acme") -> list[str]:
        now = self.wallClock()
        return self.successResultOf(
            self.database.read(lambda connection: liveSecrets(connection, tenant, now))
        )

    def test_made(self) -> None:
        """A secret is 256 random bits, told once, and the tenant's own."""
        record, secret = self.get(self.secrets.create("acme"))
        self.assertEqual(len(base64.b64decode(secret.removeprefix("whsec_"))), 32)
        self.assertEqual(self.live(), [secret])
        self.assertEqual(self.live("other"), [])
        self.assertEqual(self.get(self.secrets.list("acme")), [record])
        self.assertEqual(self.get(self.secrets.list("other")), [])
        self.assertNotIn(secret, str(self.get(self.secrets.list("acme"))))

    def test_rotated(self) -> None:
        """Two are live until the older one's time is over."""
        _, old = self.get(self.secrets.create("acme"))
        self.clock.advance(1)
        _, new = self.get(self.secrets.create("acme", retireOthersIn=60))
        self.assertEqual(self.live(), [new, old])
        self.clock.advance(60)
        self.assertEqual(self.live(), [new])
        retired = [one.retired is None for one in self.get(self.secrets.list("acme"))]
        self.assertEqual(retired, [True, False])

    def test_rotatedAgain(self) -> None:
        """A later end does not give a secret more time than it had."""
        _, old = self.get(self.secrets.create("acme"))
        self.get(self.secrets.create("acme", retireOthersIn=0))
        self.get(self.secrets.create("acme", retireOthersIn=60))
        self.assertNotIn(old, self.live())
        self.assertEqual(len(self.live()), 2)

    def test_retired(self) -> None:
        """At once, and only the tenant's own; twice changes nothing."""
        record, _ = self.get(self.secrets.create("acme"))
        self.assertFalse(self.get(self.secrets.retire("other", record.id)))
        self.assertFalse(self.get(self.secrets.retire("acme", "whs_no")))
        self.assertEqual(len(self.live()), 1)
        self.assertTrue(self.get(self.secrets.retire("acme", record.id)))
        self.assertEqual(self.live(), [])
        before = self.get(self.secrets.list("acme"))
        self.clock.advance(5)
        self.assertTrue(self.get(self.secrets.retire("acme", record.id)))
        self.assertEqual(self.get(self.secrets.list("acme")), before)

    def test_limit(self) -> None:
        """So many are live at most; a retired one makes room."""
        made = [self.get(self.secrets.create("acme")) for _ in range(MAX_LIVE)]
        self.fails(self.secrets.create("acme"), TooManySecrets)
        self.get(self.secrets.create("other"))
        self.get(self.secrets.retire("acme", made[0][0].id))
        self.get(self.secrets.create("acme"))

    def test_signature(self) -> None:
        """The example of the Standard Webhooks libraries; one signature for each secret."""
        secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
        body = b'{"test": 2432232314}'
        signed = signatureOf([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
        self.assertEqual(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
        self.assertEqual(len(signatureOf([secret, secret], "m", 1, b"").split(" ")), 2)
        self.assertEqual(signatureOf([], "m", 1, b""), "")


class SecretPostgreSQLTests(OnPostgreSQL, SecretTests):
    """The same."""
