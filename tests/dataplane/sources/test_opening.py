"""A source resumes only where nothing can be missing; everything else is a GAP with its reason, or a new start."""

from dataclasses import replace

import msgspec
import pytest

from contracts.codes import Code
from dataplane.batch import START, Position
from dataplane.checkpoint import Checkpoint, SourceIdentity
from dataplane.failures import Gap
from dataplane.sources.postgres.opening import Resume, ServerSeen, SlotSeen, StartOver, decide, object_name
from dataplane.sources.postgres.slots import history_of

PREFIX = object_name("0b0e7a6c-8d7e-4f43-9f6a-2f7f0c5d1a11")
IDENTITY = SourceIdentity(
    system_identifier="7", timeline=1, database="shop", slot=f"{PREFIX}_aaaa0000", publication=PREFIX
)
CHECKPOINT = Checkpoint(
    epoch=3,
    source=IDENTITY,
    position=Position(900, 4),
    confirmed_through=1000,
    snapshot_done=True,
    tables_owned=[],
    tables_copied=["public.a"],
)
SLOT = SlotSeen(
    name=IDENTITY.slot,
    plugin="pgoutput",
    database="shop",
    logical=True,
    active_pid=None,
    confirmed_flush=1000,
    lost=False,
)
SERVER = ServerSeen("7", 1, 5000, "shop", (SLOT,))


def with_slot(**changes: object) -> ServerSeen:
    return replace(SERVER, slots=(replace(SLOT, **changes),))  # type: ignore[arg-type]


class TestResuming:
    """The slot is the one that the checkpoint names, and is not beyond it."""

    @pytest.mark.parametrize("flush", [1, 999, 1000])
    def test_a_slot_at_or_behind_the_checkpoint_goes_on_at_the_checkpoint(self, flush: int) -> None:
        """What lies between was applied already, so it is not asked for again."""
        decision = decide(CHECKPOINT, with_slot(confirmed_flush=flush))
        assert isinstance(decision, Resume)
        assert (decision.lsn, decision.position) == (1000, Position(900, 4))

    def test_a_slot_of_another_incarnation_that_nobody_reads_is_an_orphan(self) -> None:
        """A session that lost a race for the pipeline may leave one; one that is in use is left alone."""
        orphan = replace(SLOT, name=f"{PREFIX}_bbbb0000")
        used = replace(SLOT, name=f"{PREFIX}_cccc0000", active_pid=17)
        decision = decide(CHECKPOINT, replace(SERVER, slots=(SLOT, orphan, used)))
        assert isinstance(decision, Resume)
        assert decision.orphans == (orphan,)


class TestGaps:
    """Rows between the checkpoint and what the server still gives may be missing."""

    @pytest.mark.parametrize(
        ("server", "code"),
        [
            (replace(SERVER, slots=()), Code.GAP_SLOT_MISSING),
            (replace(SERVER, slots=(replace(SLOT, name=f"{PREFIX}_bbbb0000"),)), Code.GAP_SLOT_MISSING),
            (with_slot(confirmed_flush=1001), Code.GAP_SLOT_AHEAD),
            (with_slot(lost=True, reason="wal_removed"), Code.GAP_SLOT_INVALIDATED),
            (with_slot(plugin="test_decoding"), Code.GAP_SLOT_FOREIGN),
            (with_slot(logical=False, plugin=None, database=None), Code.GAP_SLOT_FOREIGN),
            (with_slot(database="other"), Code.GAP_SLOT_FOREIGN),
            (replace(SERVER, system_identifier="8"), Code.GAP_OTHER_SYSTEM),
            (replace(SERVER, database="other", slots=()), Code.GAP_OTHER_SYSTEM),
            (replace(SERVER, timeline=0), Code.GAP_OLD_PRIMARY),
            (replace(SERVER, wal_end=999), Code.GAP_RESTORED),
            (replace(SERVER, slots=(), given_up=frozenset({IDENTITY.slot})), Code.GAP_LOG_LIMIT),
        ],
    )
    def test_each_has_its_code(self, server: ServerSeen, code: Code) -> None:
        """And nothing is started silently."""
        with pytest.raises(Gap) as gap:
            decide(CHECKPOINT, server)
        assert gap.value.code is code

    def test_a_slot_without_a_checkpoint_is_a_gap(self) -> None:
        """The destination lost what it knew; starting at 'now' would lose rows, and starting over is for a person to say."""
        with pytest.raises(Gap) as gap:
            decide(None, SERVER)
        assert gap.value.code is Code.GAP_CHECKPOINT_LOST


class TestFailover:
    """The same system on a newer timeline: a standby was promoted."""

    @pytest.mark.parametrize("ended", [1000, 1001, 9999])
    def test_a_timeline_that_goes_back_to_all_that_we_hold_goes_on(self, ended: int) -> None:
        """The checkpoint follows to it, and loses nothing of what was confirmed."""
        decision = decide(CHECKPOINT, replace(with_slot(confirmed_flush=950), timeline=2, history={1: ended}))
        assert isinstance(decision, Resume)
        assert (decision.lsn, decision.confirmed, decision.position) == (1000, 1000, Position(900, 4))
        assert decision.follow == msgspec.structs.replace(IDENTITY, timeline=2)

    def test_several_failovers_in_between_go_on_too(self) -> None:
        """Each timeline says where the one before it ended."""
        history = {1: 1500, 2: 1600, 3: 1700}
        decision = decide(CHECKPOINT, replace(with_slot(confirmed_flush=950), timeline=4, history=history))
        assert isinstance(decision, Resume)
        assert decision.follow == msgspec.structs.replace(IDENTITY, timeline=4)

    def test_rows_that_only_a_lane_has_count_as_delivered(self) -> None:
        """A standby that lacks them is behind, though the checkpoint is not; so is a source that was restored."""
        lane = msgspec.structs.replace(CHECKPOINT, ahead=Position(1200, 0))
        for server, code in (
            (replace(SERVER, timeline=2, history={1: 1100}), Code.GAP_FAILOVER_BEHIND),
            (replace(SERVER, wal_end=1100), Code.GAP_RESTORED),
        ):
            assert isinstance(decide(CHECKPOINT, server), Resume)
            with pytest.raises(Gap) as caught:
                decide(lane, server)
            assert caught.value.code is code

    def test_an_idle_advance_beyond_the_end_is_taken_back(self) -> None:
        """What was confirmed beyond the last row held nothing of ours; what the new timeline has there may."""
        decision = decide(
            CHECKPOINT, replace(with_slot(confirmed_flush=940), timeline=2, wal_end=990, history={1: 960})
        )
        assert isinstance(decision, Resume)
        assert (decision.lsn, decision.confirmed) == (960, 960)

    @pytest.mark.parametrize(
        ("server", "code"),
        [
            (replace(SERVER, history={1: 899}), Code.GAP_FAILOVER_BEHIND),
            (replace(SERVER, history={}), Code.GAP_OTHER_TIMELINE),
            (replace(SERVER, history={1: 1000}, slots=()), Code.GAP_SLOT_NOT_SYNCED),
            (replace(with_slot(lost=True, reason="rows_removed"), history={1: 1000}), Code.GAP_SLOT_INVALIDATED),
            (replace(with_slot(confirmed_flush=961), history={1: 960}), Code.GAP_SLOT_AHEAD),
            (replace(SERVER, history={1: 1000}, system_identifier="8"), Code.GAP_OTHER_SYSTEM),
        ],
    )
    def test_each_reason_why_it_cannot_has_its_code(self, server: ServerSeen, code: Code) -> None:
        """Rows that the source never had, a branch of its own, a slot that did not follow or was moved."""
        with pytest.raises(Gap) as gap:
            decide(CHECKPOINT, replace(server, timeline=2))
        assert gap.value.code is code

    def test_an_old_primary_that_comes_back_is_refused(self) -> None:
        """The checkpoint has followed to a newer timeline, whatever the old one has written since."""
        followed = msgspec.structs.replace(CHECKPOINT, source=msgspec.structs.replace(IDENTITY, timeline=3))
        with pytest.raises(Gap) as gap:
            decide(followed, replace(SERVER, timeline=2, history={1: 1000}))
        assert gap.value.code is Code.GAP_OLD_PRIMARY

    def test_a_history_file_is_read_with_its_reasons_and_empty_lines(self) -> None:
        """Fields are parted by white space; what follows a number sign is for people."""
        content = "1\t0/3000148\tno recovery target specified\n\n# note\n2\t1/A0\tbefore 2026-01-01 # x\n"
        assert history_of(content) == {1: 0x3000148, 2: (1 << 32) | 0xA0}


class TestStartingOver:
    """Nothing was streamed yet."""

    def test_without_checkpoint_and_slot(self) -> None:
        """The first start of a pipeline."""
        assert decide(None, replace(SERVER, slots=())) == StartOver(())

    def test_an_unfinished_snapshot_begins_again_and_drops_what_it_finds(self) -> None:
        """Whether the slot was made or not, and whatever system it was."""
        unfinished = msgspec.structs.replace(CHECKPOINT, snapshot_done=False, position=START)
        assert decide(unfinished, SERVER) == StartOver((SLOT,))
        assert decide(unfinished, replace(SERVER, slots=())) == StartOver(())
        assert decide(unfinished, replace(SERVER, system_identifier="8", slots=())) == StartOver(())

    def test_a_foreign_slot_is_not_dropped(self) -> None:
        """A slot of our name that we cannot have made is not ours to drop."""
        unfinished = msgspec.structs.replace(CHECKPOINT, snapshot_done=False)
        with pytest.raises(Gap) as gap:
            decide(unfinished, with_slot(plugin="wal2json"))
        assert gap.value.code is Code.GAP_SLOT_FOREIGN

    def test_a_copy_whose_slot_was_given_up_at_the_limit_does_not_begin_again_by_itself(self) -> None:
        """It would fill the source's disk again and again; a person decides."""
        unfinished = msgspec.structs.replace(CHECKPOINT, snapshot_done=False, position=START)
        server = replace(SERVER, slots=(), given_up=frozenset({IDENTITY.slot}))
        with pytest.raises(Gap) as gap:
            decide(unfinished, server)
        assert gap.value.code is Code.GAP_LOG_LIMIT
        assert decide(unfinished, replace(server, slots=(SLOT,))) == StartOver((SLOT,))


class TestAfresh:
    """Somebody asked for a new copy of every table."""

    @pytest.mark.parametrize(
        "server",
        [
            SERVER,
            replace(SERVER, slots=()),
            with_slot(confirmed_flush=4000),
            with_slot(lost=True),
            replace(SERVER, system_identifier="8"),
            replace(SERVER, timeline=2),
            replace(SERVER, slots=(), given_up=frozenset({IDENTITY.slot})),
        ],
    )
    def test_no_gap_holds_it_back_and_our_slots_are_dropped(self, server: ServerSeen) -> None:
        """With or without what the destination knew."""
        assert decide(CHECKPOINT, server, afresh=True) == StartOver(tuple(server.slots))
        assert decide(None, server, afresh=True) == StartOver(tuple(server.slots))

    def test_a_slot_that_we_cannot_have_made_stays(self) -> None:
        """It does not hold the new one back: that has another name."""
        assert decide(CHECKPOINT, with_slot(plugin="wal2json"), afresh=True) == StartOver(())


def test_names_fit_postgresql_whatever_the_pipeline_is_called() -> None:
    """Lower-case letters, digits and underscores; at most 63 with an incarnation."""
    for pipeline in ("0b0e7a6c-8d7e-4f43-9f6a-2f7f0c5d1a11", "a" * 300, "Ümlaut; DROP"):
        name = object_name(pipeline)
        assert name.replace("_", "").isalnum()
        assert name == name.lower()
        assert len(name) + 9 <= 63
