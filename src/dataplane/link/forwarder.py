"""Carries facts from the outbox through the leaf's stream to the control plane, and forgets each only with its receipt.

One durable consumer a node keeps that node's facts in order. The stream and its consumers may be deleted at any moment:
what the outbox still holds is put in again. A node that died leaves facts in the stream; any other node of the data
plane forwards them for it, as they were signed.
"""

import asyncio
import contextlib
import logging

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from contracts import subjects, v2
from contracts.envelope import EnvelopeError, decode_report, open_signed
from dataplane.link.facts import FACTS_MAX, Outbox

STREAM = "facts"
STREAM_BYTES_MAX = 256 << 20
BATCH_MAX = 64
FETCH_SECONDS = 0.5
RECEIPT_SECONDS_MAX = 5.0
ACK_WAIT_SECONDS = 8.0

log = logging.getLogger(__name__)
_RECEIPTS = msgspec.json.Decoder(v2.Receipt)

STREAM_CONFIG = StreamConfig(
    name=STREAM,
    subjects=[f"{STREAM}.*"],
    retention=RetentionPolicy.WORK_QUEUE,
    storage=StorageType.FILE,
    discard=DiscardPolicy.NEW,
    discard_new_per_subject=True,
    max_msgs_per_subject=2 * FACTS_MAX,
    max_bytes=STREAM_BYTES_MAX,
)


class HubAway(Exception):
    """The control plane did not answer; what was not answered stays where it is."""


class Forwarder:
    """Forwards over one connection to the leaf; a new connection gets a new forwarder over the same outbox."""

    def __init__(self, client: Client, outbox: Outbox, *, data_plane: str, node: str) -> None:
        self._client = client
        self._context: JetStreamContext = client.jetstream(timeout=RECEIPT_SECONDS_MAX)
        self._outbox = outbox
        self._data_plane = data_plane
        self._node = node
        self._in_stream: set[int] = set()
        self._pulls: dict[str, JetStreamContext.PullSubscription] = {}
        self._waiting_elsewhere: dict[str, int] = {}
        self._adopted: set[str] = set()
        self.forwarded_total = 0
        self.refused_total = 0

    async def forward(self) -> None:
        """Forward all that the outbox holds.

        Raises:
            HubAway: the control plane does not answer.
            nats.errors.Error: the leaf does not answer.
        """
        while len(self._outbox):
            try:
                await self._fill()
                if not await self._forward_batch(self._node):
                    await self._check_stream()
            except nats.js.errors.NotFoundError:
                await self._forget_stream()
            except nats.errors.Error:
                await self._drop_pulls()  # whatever it was, the next try looks for the consumer again
                raise

    async def forward_for_others(self) -> None:
        """Forward what nodes left behind that do not forward themselves: the same count in two looks.

        Raises:
            HubAway: the control plane does not answer.
            nats.errors.Error: the leaf does not answer.
        """
        try:
            info = await self._context.stream_info(STREAM, subjects_filter=f"{STREAM}.*")
        except nats.js.errors.NotFoundError:
            return
        counts = {subject.removeprefix(f"{STREAM}."): count for subject, count in (info.state.subjects or {}).items()}
        counts.pop(self._node, None)
        self._adopted |= {node for node, count in counts.items() if self._waiting_elsewhere.get(node) == count}
        self._adopted &= counts.keys()
        self._waiting_elsewhere = counts
        for node in sorted(self._adopted):
            while await self._forward_batch(node):
                pass

    async def discard(self) -> None:
        """Empty the stream of this node's facts: they have collapsed into one.

        Raises:
            nats.errors.Error: the leaf does not answer.
        """
        self._in_stream.clear()
        try:
            await self._context.purge_stream(STREAM, subject=f"{STREAM}.{self._node}")
        except nats.js.errors.NotFoundError:
            await self._forget_stream()

    async def _fill(self) -> None:
        """Put into the stream what the outbox holds and the stream was not given."""
        for sequence in self._outbox.sequences():
            envelope = None if sequence in self._in_stream else self._outbox.get(sequence)
            if envelope is None:
                continue
            if _sequence_of(envelope) != sequence:
                log.error("report %d in the outbox is damaged and was dropped", sequence)
                self._outbox.remove(sequence)
                continue
            try:
                await self._context.publish(f"{STREAM}.{self._node}", envelope, stream=STREAM)
            except nats.js.errors.NoStreamResponseError:
                await self._context.add_stream(STREAM_CONFIG)
                await self._context.publish(f"{STREAM}.{self._node}", envelope, stream=STREAM)
            self._in_stream.add(sequence)

    async def _forward_batch(self, node: str) -> bool:
        """Forward a few facts of `node` in order. Return whether there were any."""
        pull = self._pulls.get(node) or await self._consumer(node)
        try:
            messages = await pull.fetch(BATCH_MAX, timeout=FETCH_SECONDS)
        except (nats.errors.TimeoutError, TimeoutError):
            return False
        except nats.js.errors.APIError as error:  # such as 409 Consumer Deleted
            await self._drop_pulls()
            raise nats.js.errors.NotFoundError from error
        answers = await asyncio.gather(*(self._deliver(node, message) for message in messages))
        if not all(answers):
            raise HubAway("the control plane does not answer")
        return bool(messages)

    async def _consumer(self, node: str) -> JetStreamContext.PullSubscription:
        pull = await self._context.pull_subscribe(
            f"{STREAM}.{node}",
            durable=f"forward-{node}",
            stream=STREAM,
            config=ConsumerConfig(
                ack_policy=AckPolicy.EXPLICIT, ack_wait=ACK_WAIT_SECONDS, max_ack_pending=4 * BATCH_MAX
            ),
        )
        self._pulls[node] = pull
        return pull

    async def _deliver(self, node: str, message: Msg) -> bool:
        """Send one fact and wait for its receipt. Return whether the control plane has answered."""
        sequence = _sequence_of(message.data)
        if sequence is None:
            await message.term()  # nothing of ours: somebody wrote into the stream
            return True
        subject = subjects.up(open_signed(message.data).contract, self._data_plane, node, "report")
        try:
            reply = await self._client.request(subject, message.data, timeout=RECEIPT_SECONDS_MAX)
            receipt = _RECEIPTS.decode(reply.data)
        except (nats.errors.Error, TimeoutError, msgspec.DecodeError):
            if self._client.is_connected:
                await message.nak()
            return False
        if receipt.accepted:
            self.forwarded_total += 1
        else:
            self.refused_total += 1
            log.warning("the control plane refused report %d of node %s: %s", sequence, node, receipt.code)
        if node == self._node:
            self._outbox.remove(sequence)
            self._in_stream.discard(sequence)
        await message.ack()
        return True

    async def _check_stream(self) -> None:
        """Fill the stream again if it no longer has what the outbox waits for: it was made anew, or emptied."""
        pull = self._pulls[self._node]
        info = await pull.consumer_info()
        if not info.num_pending and not info.num_ack_pending:
            self._in_stream.clear()

    async def _forget_stream(self) -> None:
        self._in_stream.clear()
        await self._drop_pulls()
        await self._context.add_stream(STREAM_CONFIG)

    async def _drop_pulls(self) -> None:
        pulls, self._pulls = self._pulls, {}
        for pull in pulls.values():
            with contextlib.suppress(nats.errors.Error):
                await pull.unsubscribe()


def _sequence_of(envelope: bytes) -> int | None:
    """Return the number of a sealed report; None for anything else."""
    try:
        signed = open_signed(envelope)
        return decode_report(bytes(signed.body), signed.contract).sequence
    except EnvelopeError:
        return None
