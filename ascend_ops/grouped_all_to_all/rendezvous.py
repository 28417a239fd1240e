"""The rendezvous of a group's ranks on one machine: rank 0 passes them an anonymous file over a socket.

The socket's address is abstract (no entry in any file system), so nothing is left behind when a process dies. The
packets are JSON:

    member → rank 0    its Claim
    rank 0 → member    {"here": ranks that have arrived}, whenever this changes
    rank 0 → member    {"file": true} with the descriptor, when all have arrived
    member → rank 0    {"ready": true}, when it has entered the group
    rank 0 → member    {"go": true}, when all have entered
    either             {"error": message}, when the group cannot be formed
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import cast

PACKET_BYTES = 1 << 16
ADDRESS_BYTES = 107  # length of a sockaddr_un's path
RETRY_SECONDS = 0.02
GRACE_SECONDS = 1.0  # extra wait of a rank that is connected to rank 0, so that all report the same error


@dataclasses.dataclass(frozen=True)
class Claim:
    """A rank's view of its group."""

    name: str
    rank: int
    size: int
    capacity_bytes: int


def address(job: str, name: str) -> bytes:
    """Returns the socket's address for a job's group; users do not share addresses."""
    readable = f"\0mindpangu/{os.getuid()}/{job}/{name}".encode()
    if len(readable) <= ADDRESS_BYTES:
        return readable
    return f"\0mindpangu/{os.getuid()}/{hashlib.sha256(readable).hexdigest()}".encode()


def host(
    address: bytes, claim: Claim, timeout: float, make_file: Callable[[], int], enter: Callable[[int], None]
) -> tuple[int, socket.socket]:
    """Runs on rank 0: waits for the other ranks, creates the file and passes it to them.

    Args:
        address: result of `address`.
        claim: this rank's view of the group.
        timeout: seconds to wait for the others.
        make_file: returns the file's descriptor.
        enter: called with the descriptor before the group is complete.

    Returns:
        The descriptor, and the socket, which occupies the address as long as it is open.

    Raises:
        TimeoutError, RuntimeError: see `group.join`.
    """
    deadline = time.monotonic() + timeout
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    members: dict[int, socket.socket] = {}
    descriptor = -1
    try:
        try:
            listener.bind(address)
        except OSError as error:
            raise RuntimeError(
                f"group {claim.name}: another rank 0 of the same job has this group open ({error.strerror})"
            ) from None
        listener.listen(claim.size)
        _gather(listener, members, claim, deadline, timeout)
        descriptor = make_file()
        enter(descriptor)
        for member in members.values():
            socket.send_fds(member, [json.dumps({"file": True}).encode()], [descriptor])
        for rank, member in members.items():
            if not _receive(member, deadline).get("ready"):
                raise RuntimeError(f"group {claim.name}: rank {rank} has died while it joined")
        for member in members.values():
            _send(member, {"go": True})
        listener.shutdown(socket.SHUT_RDWR)  # latecomers are refused at once
        return descriptor, listener
    except BaseException as error:
        for member in members.values():
            _send(member, {"error": str(error), "late": isinstance(error, TimeoutError)})
        listener.close()
        if descriptor >= 0:
            os.close(descriptor)
        raise
    finally:
        for member in members.values():
            member.close()


def _gather(
    listener: socket.socket, members: dict[int, socket.socket], claim: Claim, deadline: float, timeout: float
) -> None:
    """Fills `members`; raises if ranks do not arrive in time, or make a claim that does not fit."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        strangers = set()  # connected, but no packet received yet
        arrived = {0}  # includes ranks that disconnected again: nobody waited for them in vain
        try:
            while len(members) < claim.size - 1:
                if time.monotonic() > deadline:
                    raise _late(claim.name, claim.size, arrived, timeout)
                for key, _ in selector.select(max(deadline - time.monotonic(), 0)):
                    peer = cast(socket.socket, key.fileobj)
                    if peer is listener:
                        peer, _ = listener.accept()
                        selector.register(peer, selectors.EVENT_READ)
                        strangers.add(peer)
                        continue
                    words = _receive(peer, deadline)
                    if peer in strangers and words and _is_ours(peer):
                        strangers.discard(peer)
                        arrived.add(_admit(peer, Claim(**words), members, claim))
                    else:  # disconnected, or another user's process
                        selector.unregister(peer)
                        strangers.discard(peer)
                        for rank in [rank for rank, member in members.items() if member is peer]:
                            del members[rank]
                        peer.close()
                    for member in members.values():
                        _send(member, {"here": sorted(arrived)})
        finally:
            for stranger in strangers:
                stranger.close()


def _admit(peer: socket.socket, theirs: Claim, members: dict[int, socket.socket], claim: Claim) -> int:
    """Adds a member and returns its rank; raises RuntimeError if its claim does not fit."""
    problem = None
    if (theirs.size, theirs.capacity_bytes) != (claim.size, claim.capacity_bytes):
        problem = (
            f"rank {theirs.rank} joins {theirs.size} ranks with {theirs.capacity_bytes} capacity_bytes, "
            f"rank 0 {claim.size} with {claim.capacity_bytes}"
        )
    elif theirs.rank in members:
        problem = f"two processes claim rank {theirs.rank}"
    if problem:
        error = RuntimeError(f"group {claim.name}: {problem}")
        _send(peer, {"error": str(error)})
        peer.close()
        raise error
    members[theirs.rank] = peer
    return theirs.rank


def visit(address: bytes, claim: Claim, timeout: float, enter: Callable[[int], None]) -> int:
    """Runs on the other ranks: returns the descriptor of the group's file. Raises the errors of `group.join`."""
    deadline = time.monotonic() + timeout
    here: set[int] = set()
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                peer.connect(address)
            except OSError:  # rank 0 does not listen yet
                time.sleep(RETRY_SECONDS)
                continue
            here = {0, claim.rank}
            if not _is_ours(peer):
                raise RuntimeError(f"group {claim.name}: its address is taken by another user's process")
            descriptor = _converse(peer, claim, deadline + GRACE_SECONDS, here, enter)
            if descriptor is not None:
                return descriptor
    raise _late(claim.name, claim.size, here or {claim.rank}, timeout)


def _converse(
    peer: socket.socket, claim: Claim, deadline: float, here: set[int], enter: Callable[[int], None]
) -> int | None:
    """Returns the descriptor, or None if rank 0 disconnected or the time is up; updates `here` with the arrived
    ranks."""
    _send(peer, dataclasses.asdict(claim))
    descriptor = None
    try:
        while True:
            peer.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data, descriptors, _, _ = socket.recv_fds(peer, PACKET_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                break
            if not data:
                break
            words = json.loads(data)
            if "here" in words:
                here.clear()
                here.update(words["here"])
            if "error" in words:
                raise (TimeoutError if words.get("late") else RuntimeError)(words["error"])
            if descriptors:
                (descriptor,) = descriptors
                enter(descriptor)
                _send(peer, {"ready": True})
            if "go" in words:
                return descriptor
    except BaseException:
        if descriptor is not None:
            os.close(descriptor)
        raise
    if descriptor is not None:  # entered, but the group was not completed
        os.close(descriptor)
        raise RuntimeError(f"group {claim.name}: rank 0 has died while the ranks joined")
    return None


def _late(name: str, size: int, here: set[int], timeout: float) -> TimeoutError:
    missing = sorted(set(range(size)) - here)
    if not missing:
        text = f"the ranks of group {name} all joined, but not all stayed for {timeout:g} s"
    elif 0 in missing and size > 2:
        text = f"rank 0 of group {name}, which the others wait for, did not join within {timeout:g} s"
    else:
        ranks = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
        text = f"{ranks} of group {name} did not join within {timeout:g} s"
    return TimeoutError(text)


def _is_ours(peer: socket.socket) -> bool:
    """True if the peer is a process of the same user; abstract sockets have no permissions."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1] == os.getuid()


def _send(peer: socket.socket, words: dict) -> None:
    with contextlib.suppress(OSError):  # a closed connection is noticed when the answer is read
        peer.send(json.dumps(words).encode())


def _receive(peer: socket.socket, deadline: float) -> dict:
    """Returns the next packet; {} if the peer disconnected or the time is up."""
    peer.settimeout(max(deadline - time.monotonic(), 0.001))
    try:
        data = peer.recv(PACKET_BYTES)
    except OSError:
        return {}
    return json.loads(data) if data else {}
