"""Ranks that know each other: threads stand for processes, and a closed line for a death."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest

from ggm_lightning.rundir import hub as hubs
from ggm_lightning.rundir.hub import Apart, Hub


def hub(rank: int, ranks: int, token: str, silence: float = 60.0) -> Hub:
    return Hub(rank, ranks, f"n{rank}", token, "127.0.0.1", silence)


def together(work: list[Callable[[], object]]) -> list[object]:
    """What each returns, or has raised."""
    found: list[object] = [None] * len(work)

    def run(number: int) -> None:
        try:
            found[number] = work[number]()
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


@pytest.fixture
def three(tmp_path) -> list[Hub]:
    hubs_of = [hub(rank, 3, str(tmp_path), silence=1.0) for rank in range(3)]
    assert together([lambda h=h: h.meet(10) for h in hubs_of]) == [None] * 3
    yield hubs_of
    for one in hubs_of:
        one.leave()


def drop(one: Hub) -> None:
    """As the system does with a process that is killed."""
    one._closing = True  # it does nothing more
    for line in one._lines.values():
        line.shutdown(socket.SHUT_RDWR)


def test_rank_0_tells_what_it_has_decided(three: list[Hub]) -> None:
    three[0].tell("resume", ["last.ckpt", 7])
    three[0].tell("port", 5)
    assert [h.hear("resume") for h in three[1:]] == [["last.ckpt", 7]] * 2
    assert [h.hear("port") for h in three[1:]] == [5, 5]


def test_a_rank_that_dies_is_named_with_its_node(three: list[Hub]) -> None:
    drop(three[2])
    assert all(h.is_over.wait(5) for h in three[:2])
    assert three[0].lost == "rank 2 on n2 has died"
    assert isinstance(together([lambda: three[1].hear("resume")])[0], Apart)  # nobody waits for what will not come


def test_the_death_of_rank_0_is_seen_by_all(three: list[Hub]) -> None:
    drop(three[0])
    assert all(h.is_over.wait(5) for h in three[1:])
    assert [h.lost for h in three[1:]] == ["rank 0 on n0 has died"] * 2


def test_a_rank_that_leaves_is_not_missed(three: list[Hub]) -> None:
    three[1].leave()
    drop(three[1])
    assert not three[0].is_over.wait(0.5)
    assert three[0].lost is None


def test_a_rank_that_stops_answering(three: list[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(three[1], "_write", lambda *message: None)
    assert three[0].is_over.wait(10)
    assert three[0].lost == "rank 1 on n1 has not answered for 1 s"


def test_of_several_failures_one_line_is_said(three: list[Hub]) -> None:
    said = together([lambda h=h: h.fail("no such file") for h in three])
    assert sorted(map(str, said)) == ["", "", "no such file"]


def test_one_ranks_failure_is_said_by_rank_0(three: list[Hub]) -> None:
    assert three[2].fail("no such file") == ""
    assert three[0].is_over.wait(5)
    assert three[0].told_by_others() == "rank 2 on n2: no such file"
    assert three[0].lost is None


def test_a_meeting_that_is_never_complete(tmp_path) -> None:
    one, two = hub(0, 3, str(tmp_path)), hub(1, 3, str(tmp_path))
    late, follows = together([lambda: one.meet(1.0), lambda: two.meet(5.0)])
    assert "of 3 ranks 1 have not come to rank 0 on n0 within 1 s (rank 2)" in str(late)
    assert isinstance(follows, Apart)
    assert str(follows) == ""  # rank 0 has said it
    alone = together([lambda: hub(1, 2, "nobody").meet(0.5)])[0]
    assert str(alone).startswith("rank 1 on n1 cannot reach rank 0 at 127.0.0.1 within 0 s")


def test_a_port_that_is_taken_and_one_of_another_job(tmp_path) -> None:
    """The first port belongs to somebody who says nothing, the second to other ranks: the third is taken."""
    token = str(tmp_path)
    with socket.socket() as silent, socket.socket() as foreign:
        for taken, port in zip((silent, foreign), hubs.ports(token), strict=False):
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("", port))
            taken.listen()

        def answer() -> None:
            line = foreign.accept()[0]
            line.sendall(b'{"token": "another"}\n')
            time.sleep(0.2)
            line.close()

        threading.Thread(target=answer, daemon=True).start()
        pair = [hub(rank, 2, token) for rank in range(2)]
        assert together([lambda h=h: h.meet(15) for h in pair]) == [None, None]
        for one in pair:
            one.leave()
    assert len(set(hubs.ports(token))) > 10
    assert hubs.ports("17 0 0") != hubs.ports("18 0 0")


def test_rank_0_knows_who_has_come_so_far(three: list[Hub]) -> None:
    three[1].arrive("here")
    assert three[0].gather("here", 0.5) == [2]
    for one in three[1:]:
        one.arrive("there")
    assert three[0].gather("there", 10.0) == []
    assert three[0].gather("nowhere", 0.01) == [1, 2]


def test_who_has_left_tells_nothing_more(three: list[Hub]) -> None:
    three[0].tell("early", 1)
    three[0].leave()
    assert three[1].hear("early") == 1
    (raised,) = together([lambda: three[1].hear("late")])
    assert isinstance(raised, Apart)


def test_a_stray_connection_does_not_keep_the_ranks_apart(tmp_path) -> None:
    """One that says nothing, one that leaves at once, and that of a rank that gave up waiting and calls again."""
    token = str(tmp_path)
    pair = [hub(rank, 2, token) for rank in range(2)]
    found: list[object] = []
    first = threading.Thread(target=lambda: found.append(together([lambda: pair[0].meet(15)])), daemon=True)
    first.start()
    door = next(iter(hubs.ports(token)))
    silent = called(door)
    called(door).close()
    impatient = called(door)  # as a rank that has called and is gone before it was answered
    hubs._send(impatient, {"token": token, "rank": 1, "node": "n1"})
    impatient.close()
    assert together([lambda: pair[1].meet(15)]) == [None]
    first.join(20)
    assert found == [[None]]
    assert pair[0]._nodes == pair[1]._nodes == {0: "n0", 1: "n1"}
    pair[1].arrive("there")
    assert pair[0].gather("there", 5) == []
    silent.close()
    for one in pair:
        one.leave()


def called(port: int) -> socket.socket:
    """A line to the door, once it is open."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1.0)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_rank_that_ends_without_coming_is_not_waited_for(three: list[Hub]) -> None:
    three[1].arrive("work")
    three[2].leave()
    begin = time.monotonic()
    assert isinstance(together([lambda: three[0].gather("work", 15)])[0], Apart)
    assert time.monotonic() - begin < 10
    assert three[0].lost == "rank 2 on n2 has ended"
