"""Tests for L{helix_revdial.revdial.dialer} and L{helix_revdial.revdial.control}."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from helix_revdial.revdial.control import MAX_UNSENT
from helix_revdial.revdial.dialer import HAND_OVER, Dialer
from helix_revdial.revdial.features import ECHO, GOODBYE
from helix_revdial.revdial.keepalive import Liveness
from helix_revdial.revdial.messages import (
    MAX_LINE,
    Closing,
    ConnReady,
    Echo,
    Goodbye,
    KeepAlive,
    PickupFailed,
    encode,
)
from tests.revdial.carriers import MemoryCarrier

KEEP_ALIVE, PING, SILENCE = Liveness().keepAlive, Liveness().ask, Liveness().silence


class DialerCase(SynchronousTestCase):
    """A dialer with its callbacks written down."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.failed: list[PickupFailed] = []
        self.goodbyes = 0
        self.losses: list[Failure] = []

    def dialer(self, *features: str, offered: bool = True) -> Dialer:
        def goodbye() -> None:
            self.goodbyes += 1

        return Dialer(
            self.clock,
            frozenset(features),
            generation=7,
            offered=offered,
            onPickupFailed=self.failed.append,
            onGoodbye=goodbye,
            onLost=self.losses.append,
        )

    def pass_(self, seconds: float) -> None:
        """Let time pass as a reactor does: in small steps."""
        self.clock.pump([0.5] * int(seconds * 2))


class KeepAliveTests(DialerCase):
    def test_keepAliveAtOnceAndEvery18Seconds(self) -> None:
        """The first keep-alive goes out with the registration, the others follow."""
        carrier = MemoryCarrier().connect(self.dialer())
        self.assertEqual(carrier.messages(), [KeepAlive()])
        self.pass_(KEEP_ALIVE - 1)
        self.assertEqual(carrier.messages(), [])
        self.pass_(1)
        self.assertEqual(carrier.messages(), [KeepAlive()])

    def test_echoMeasuresTheRoundTrip(self) -> None:
        """With echo agreed a keep-alive asks for its answer, and the answer is timed."""
        dialer = self.dialer(ECHO)
        carrier = MemoryCarrier().connect(dialer)
        [asked] = carrier.messages()
        assert isinstance(asked, KeepAlive)
        assert asked.echo is not None
        self.clock.advance(0.25)
        carrier.deliver(encode(Echo(asked.echo)))
        self.assertEqual(dialer.roundTrip, 0.25)
        self.assertEqual(dialer.lastHeard, 0.25)

    def test_anUnaskedEchoMeasuresNothing(self) -> None:
        """An echo that nobody asked for counts as life, but as no answer."""
        dialer = self.dialer(ECHO)
        carrier = MemoryCarrier().connect(dialer)
        carrier.deliver(encode(Echo("of nothing")))
        self.assertIsNone(dialer.roundTrip)

    def test_anAgentsKeepAliveIsEchoed(self) -> None:
        """Either end may ask for a sign of life."""
        carrier = MemoryCarrier().connect(self.dialer(ECHO))
        carrier.messages()
        carrier.deliver(encode(KeepAlive("abc")))
        self.assertEqual(carrier.messages(), [Echo("abc")])

    def test_whatWeSaidComesBack(self) -> None:
        """B3: something in between that sends our own words back proves no life with them."""
        dialer = self.dialer(ECHO)
        carrier = MemoryCarrier().connect(dialer)

        def reflect() -> None:
            for message in carrier.messages():
                carrier.deliver(encode(message))

        for _ in range(int(SILENCE) + 1):
            self.clock.advance(1)
            # Once more what was said to that, if anything was.
            reflect()
            reflect()
        self.assertIsNone(dialer.roundTrip)
        self.assertTrue(carrier.ended)
        self.assertEqual(dialer.ended, "silence")

    def test_withoutEchoAWebSocketIsPinged(self) -> None:
        """The Go agents of 2026 know no echo: a ping each 15 s does its work."""
        dialer = self.dialer(offered=False)
        carrier = MemoryCarrier("websocket", canPing=True).connect(dialer)
        self.pass_(PING)
        [pong] = carrier.pings
        carrier.pings.clear()
        pong.callback(0.125)
        self.assertEqual(dialer.roundTrip, 0.125)
        self.assertEqual(dialer.lastHeard, PING)

    def test_silenceEndsTheConnection(self) -> None:
        """B1: an agent that can answer, and does not, is given up within 45 s."""
        self.assertLessEqual(SILENCE, 45)
        for carrier, features in (
            (MemoryCarrier(), (ECHO,)),
            (MemoryCarrier("websocket", canPing=True), ()),
        ):
            self.losses.clear()
            carrier.connect(self.dialer(*features))
            self.pass_(SILENCE - 1)
            self.assertFalse(carrier.ended)
            self.pass_(1.5)
            self.assertTrue(carrier.aborted)
            self.assertEqual(len(self.losses), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_ourOwnWritesAreNoLife(self) -> None:
        """Only bytes of the peer count: keep-alives that TCP swallows do not."""
        dialer = self.dialer(ECHO)
        carrier = MemoryCarrier().connect(dialer)
        self.pass_(30)
        dialer.ask(ConnReady("/revdial", "0" * 32, "t"))
        self.assertEqual(dialer.lastHeard, 0.0)
        self.pass_(31)
        self.assertTrue(carrier.aborted)

    def test_aHijackedAgentIsNotGivenUp(self) -> None:
        """The agents of 2025 never say a word; silence proves nothing."""
        carrier = MemoryCarrier("hijack").connect(self.dialer(offered=False))
        self.pass_(300)
        self.assertFalse(carrier.ended)

    def test_onlyTheAnswerToOurQuestionIsLife(self) -> None:
        """
        B2, B3: what may come from a middlebox, or from a peer that does not hear us
        (lines, echoes of nothing, its own questions), does not put the end off.
        """
        dialer = self.dialer(ECHO)
        carrier = MemoryCarrier().connect(dialer)
        for second in range(int(SILENCE)):
            self.assertFalse(carrier.ended, f"given up after {second} s")
            self.clock.advance(1)
            for line in (KeepAlive(), KeepAlive(f"q{second}"), Echo(f"q{second}")):
                if not carrier.ended:
                    carrier.deliver(encode(line))
        self.assertTrue(carrier.aborted)
        self.assertEqual(dialer.ended, "silence")

    def test_tokensCannotBeForeseen(self) -> None:
        """B3: each question has its own token, and of two connections none alike."""
        tokens = set()
        for _ in range(2):
            carrier = MemoryCarrier().connect(self.dialer(ECHO))
            self.pass_(SILENCE - 1)
            tokens |= {m.echo for m in carrier.messages() if isinstance(m, KeepAlive)}
            carrier.lose()
        self.assertEqual(len(tokens), 2 * (1 + int((SILENCE - 1) / PING)))
        self.assertTrue(all(token and len(token) >= 16 for token in tokens))

    def test_aCongestedPathIsNoDeadOne(self) -> None:
        """
        B10: on a path that delays every answer by 24 s from one moment on the
        connection lives, and the round trip is what it is.
        """
        dialer = self.dialer(ECHO)
        carrier = MemoryCarrier().connect(dialer)
        late: list[tuple[float, str]] = []
        for _ in range(2 * 300):
            for message in carrier.messages():
                if isinstance(message, KeepAlive) and message.echo is not None:
                    delay = 0.0 if self.clock.seconds() < 60 else 24.0
                    late.append((self.clock.seconds() + delay, message.echo))
            for when, token in list(late):
                if when <= self.clock.seconds():
                    late.remove((when, token))
                    carrier.deliver(encode(Echo(token)))
            self.clock.advance(0.5)
            self.assertFalse(carrier.ended, f"given up after {self.clock.seconds()} s")
        self.assertEqual(dialer.roundTrip, 24.0)

    def test_questionsOvertakeLinesThatWait(self) -> None:
        """B10: what proves life does not stand in line behind what the peer has to read."""
        carrier = MemoryCarrier().connect(self.dialer(ECHO))
        carrier.messages()
        assert carrier.producer is not None
        carrier.producer.pauseProducing()
        ready = ConnReady("/revdial", "0" * 32, "t")
        carrier.protocol.ask(ready)
        self.pass_(PING)
        carrier.deliver(encode(KeepAlive("yours")))
        carrier.producer.resumeProducing()
        answer, question, asked = carrier.messages()
        self.assertEqual((answer, asked), (Echo("yours"), ready))
        assert isinstance(question, KeepAlive)
        self.assertIsNotNone(question.echo)

    def test_aPeerThatDoesNotReadIsGivenUpInTimeToo(self) -> None:
        """Questions that never went out have no answers, and the time runs."""
        carrier = MemoryCarrier().connect(self.dialer(ECHO))
        assert carrier.producer is not None
        carrier.producer.pauseProducing()
        self.pass_(SILENCE + 1)
        self.assertTrue(carrier.aborted)


class SpeechlessAgentTests(DialerCase):
    """Agents of 2025, who have no way to say that they are there."""

    def setUp(self) -> None:
        super().setUp()
        self.hijacked = self.dialer(offered=False)
        self.carrier = MemoryCarrier("hijack").connect(self.hijacked)
        self.pass_(10)

    def runOut(self, seconds: float = 20) -> None:
        asked = self.clock.seconds()
        self.pass_(seconds)
        self.hijacked.dialRanOut(asked)

    def test_twoDialsInARowThatRunOut(self) -> None:
        """Two unanswered dials end the connection; grace follows, as ever."""
        self.runOut()
        self.assertFalse(self.carrier.ended)
        self.runOut()
        self.assertTrue(self.carrier.aborted)
        self.assertEqual(self.hijacked.ended, "unresponsive")
        self.assertEqual(len(self.losses), 1)

    def test_dialsThatRunOutTogetherCountOnce(self) -> None:
        """Ten callers at once learn no more than one of them."""
        asked = self.clock.seconds()
        self.pass_(20)
        for _ in range(10):
            self.hijacked.dialRanOut(asked)
        self.assertFalse(self.carrier.ended)

    def test_aByteInBetween(self) -> None:
        """An agent that says pickup-failed is there."""
        self.runOut()
        self.carrier.deliver(encode(PickupFailed("/revdial?a", "x")))
        self.runOut()
        self.assertFalse(self.carrier.ended)

    def test_aDialThatIsAnsweredInBetween(self) -> None:
        """So is one that picks a dial up."""
        self.runOut()
        self.hijacked.dialAnswered()
        self.runOut()
        self.assertFalse(self.carrier.ended)
        self.runOut()
        self.assertTrue(self.carrier.ended)

    def test_agentsThatCanSpeakAreJudgedByTheirAnswers(self) -> None:
        """A dial that fails says nothing about an agent that answers echoes."""
        dialer = self.dialer(ECHO)
        carrier = MemoryCarrier().connect(dialer)
        for _ in range(5):
            asked = self.clock.seconds()
            self.clock.advance(1)
            dialer.dialRanOut(asked)
        self.assertFalse(carrier.ended)


class LineTests(DialerCase):
    def test_askedBeforeTheCarrierIsUp(self) -> None:
        """Dials that wait for a registration are asked for as soon as it is carried."""
        dialer = self.dialer()
        ready = ConnReady("/revdial?revdial.dialer=a&revdial.req=b")
        dialer.ask(ready)
        carrier = MemoryCarrier().connect(dialer)
        self.assertCountEqual(carrier.messages(), [ready, KeepAlive()])

    def test_pickupFailedIsReported(self) -> None:
        """C3: what the agent says about one dial is passed on, and the next works."""
        carrier = MemoryCarrier().connect(self.dialer())
        said = [PickupFailed("/revdial?a", "x"), PickupFailed("/revdial?b", "y")]
        carrier.deliver(encode(said[0]) + encode(said[1]))
        self.assertEqual(self.failed, said)

    def test_aFailingCallbackEndsNothing(self) -> None:
        """An exception of our own code is logged, and the connection lives."""
        dialer = self.dialer()

        def broken(_: object) -> None:
            raise RuntimeError("broken")

        dialer._onPickupFailed = broken
        carrier = MemoryCarrier().connect(dialer)
        carrier.deliver(encode(PickupFailed("/revdial", "x")) + encode(Goodbye()))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.goodbyes, 1)
        self.assertFalse(carrier.ended)

    def test_badLinesCloseThisConnectionWithAReason(self) -> None:
        """C11: each kind of bad line closes with closing, 4002, and no crash."""
        for bad in (
            b"x" * MAX_LINE + b"\n",
            b"{not json}\n",
            b"[]\n",
            b'{"command":"keep-alive\x00"}\n',
            b'{"command":"\xff"}\n',
            b'{"command":"echo"}\n',
        ):
            self.losses.clear()
            carrier = MemoryCarrier().connect(self.dialer())
            carrier.messages()
            carrier.deliver(bad + encode(Goodbye()))
            self.assertEqual(carrier.messages(), [Closing("protocol-error")], bad[:20])
            assert carrier.closedWith is not None
            self.assertEqual(carrier.closedWith[0], 4002)
            self.assertEqual(len(self.losses), 1)
            self.assertEqual(self.goodbyes, 0, "a line behind the fault was acted upon")

    def test_unknownCommandsAreIgnored(self) -> None:
        """C11: a later version's command is no fault."""
        carrier = MemoryCarrier().connect(self.dialer())
        carrier.deliver(b'{"command":"dance","steps":3}\n' + encode(Goodbye()))
        self.assertFalse(carrier.ended)
        self.assertEqual(self.goodbyes, 1)

    def test_linesAtEverySplit(self) -> None:
        """C5: message boundaries mean nothing."""
        said = encode(PickupFailed("/revdial?a", "x")) + encode(PickupFailed("/revdial?b", "y"))
        for split in range(len(said) + 1):
            self.failed.clear()
            carrier = MemoryCarrier().connect(self.dialer())
            carrier.deliver(said[:split])
            carrier.deliver(said[split:])
            self.assertEqual([f.err for f in self.failed], ["x", "y"])

    def test_unsentLinesAreBounded(self) -> None:
        """A peer that does not read is dropped at 256 KiB of lines, and not before."""
        dialer = self.dialer()
        carrier = MemoryCarrier().connect(dialer)
        self.assertIs(carrier.producer, dialer)
        dialer.pauseProducing()
        ready = ConnReady("/revdial?" + "x" * 900)
        for _ in range(MAX_UNSENT // len(encode(ready))):
            dialer.ask(ready)
        self.assertFalse(carrier.ended)
        self.assertLessEqual(dialer.unsentBytes, MAX_UNSENT)
        dialer.ask(ready)
        self.assertTrue(carrier.aborted)
        self.assertEqual(len(self.losses), 1)

    def test_linesWaitWhilePausedAndKeepTheirOrder(self) -> None:
        """What waited for the peer goes out, in order, when it reads again."""
        dialer = self.dialer()
        carrier = MemoryCarrier().connect(dialer)
        carrier.messages()
        dialer.pauseProducing()
        asks = [ConnReady(f"/revdial?{n}") for n in range(5)]
        for ask in asks:
            dialer.ask(ask)
        self.assertEqual(carrier.messages(), [])
        dialer.resumeProducing()
        self.assertEqual(carrier.messages(), asks)
        self.assertEqual(dialer.unsentBytes, 0)


class CloseTests(DialerCase):
    def test_closingLineAndCode(self) -> None:
        """An agent of ours is told why, in a line and in the close code."""
        for reason, code in (
            ("superseded", 4000),
            ("revoked", 4001),
            ("shutdown", 4003),
            ("held", 4004),
        ):
            dialer = self.dialer(ECHO)
            carrier = MemoryCarrier("websocket").connect(dialer)
            carrier.messages()
            dialer.close(reason, retryAfter=60.0)
            self.assertEqual(carrier.messages(), [Closing(reason, 60.0)])
            self.assertEqual(carrier.closedWith, (code, reason))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_anOldAgentGetsNoClosingLine(self) -> None:
        """No features header: nothing but the end of the connection."""
        dialer = self.dialer(offered=False)
        carrier = MemoryCarrier("hijack").connect(dialer)
        carrier.messages()
        dialer.close("superseded", retryAfter=60.0)
        self.assertEqual(carrier.messages(), [])
        self.assertTrue(carrier.ended)

    def test_aPeerThatDoesNotReadIsAborted(self) -> None:
        """A close is over after five seconds, half-open peer or not."""
        dialer = self.dialer()
        carrier = MemoryCarrier(stuck=True).connect(dialer)
        dialer.close("superseded")
        self.pass_(4)
        self.assertFalse(carrier.ended)
        self.pass_(1)
        self.assertTrue(carrier.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_linesThatWaitComeBeforeTheClosing(self) -> None:
        """What was queued for a slow peer is not lost by an orderly close."""
        dialer = self.dialer()
        carrier = MemoryCarrier().connect(dialer)
        carrier.messages()
        dialer.pauseProducing()
        ask = ConnReady("/revdial?1")
        dialer.ask(ask)
        dialer.close("shutdown")
        self.assertEqual(carrier.messages(), [ask, Closing("shutdown")])

    def test_goodbyeOnlyToWhoUnderstands(self) -> None:
        """C{goodbye} is a feature."""
        for features, expected in (((GOODBYE,), [Goodbye(3.0)]), ((), [])):
            dialer = self.dialer(*features)
            carrier = MemoryCarrier().connect(dialer)
            carrier.messages()
            dialer.goodbye(3.0)
            self.assertEqual(carrier.messages(), expected)

    def test_abandonedWithoutACarrier(self) -> None:
        """A carrier that never comes counts as lost after its time, once."""
        dialer = self.dialer()
        self.clock.advance(HAND_OVER)
        self.assertEqual(len(self.losses), 1)
        dialer.abandon()
        self.assertEqual(len(self.losses), 1)
        carrier = MemoryCarrier().connect(dialer)
        self.assertTrue(carrier.aborted, "a carrier that is too late is closed")
        self.assertEqual(len(self.losses), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_theAgentsEndOfStreamEndsTheConnection(self) -> None:
        """Half a control connection is none."""
        dialer = self.dialer()
        carrier = MemoryCarrier().connect(dialer)
        dialer.readConnectionLost()
        self.assertTrue(carrier.ended)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ProbeTests(DialerCase):
    def test_anEchoAnswersAProbe(self) -> None:
        """The holder of a contested name proves that it is there."""
        dialer = self.dialer(ECHO)
        carrier = MemoryCarrier().connect(dialer)
        carrier.messages()
        probe = dialer.probe(3.0)
        [asked] = carrier.messages()
        assert isinstance(asked, KeepAlive)
        assert asked.echo is not None
        self.assertNoResult(probe)
        carrier.deliver(encode(Echo(asked.echo)))
        self.assertTrue(self.successResultOf(probe))

    def test_aPongAnswersAProbe(self) -> None:
        """So does a WebSocket pong."""
        dialer = self.dialer()
        carrier = MemoryCarrier("websocket", canPing=True).connect(dialer)
        probe = dialer.probe(3.0)
        carrier.pings.pop().callback(0.1)
        self.assertTrue(self.successResultOf(probe))

    def test_noAnswerWithinTheLimit(self) -> None:
        """A1: a half-open holder does not answer, and loses its name."""
        for dialer, carrier in (
            (self.dialer(ECHO), MemoryCarrier()),
            (self.dialer(), MemoryCarrier("websocket", canPing=True)),
        ):
            carrier.connect(dialer)
            probe = dialer.probe(3.0)
            self.clock.advance(3.0)
            self.assertFalse(self.successResultOf(probe))

    def test_aConnectionThatEndsDoesNotAnswer(self) -> None:
        """The end of the connection is an answer at once."""
        dialer = self.dialer(ECHO)
        carrier = MemoryCarrier().connect(dialer)
        probe = dialer.probe(3.0)
        carrier.lose()
        self.assertFalse(self.successResultOf(probe))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse(self.successResultOf(dialer.probe(3.0)))

    def test_anAgentThatCannotAnswerIsJudgedByItsSocket(self) -> None:
        """The hijacked connection of 2025 counts as there while it takes bytes."""
        for blocked in (False, True):
            dialer = self.dialer(offered=False)
            MemoryCarrier("hijack").connect(dialer)
            if blocked:
                dialer.pauseProducing()
            probe = dialer.probe(3.0)
            self.clock.advance(3.0)
            self.assertEqual(self.successResultOf(probe), not blocked)

    def test_echoesInFlightAreBounded(self) -> None:
        """However often a dead peer is asked, eight questions are remembered."""
        dialer = self.dialer(ECHO)
        MemoryCarrier().connect(dialer)
        answers = [dialer.signOfLife() for _ in range(20)]
        self.assertEqual(len(dialer._echoes), 8)
        for answer in answers:
            assert answer is not None
            answer.addErrback(lambda _: None)
            answer.cancel()
        self.assertEqual(len(dialer._echoes), 0)
