"""How the ranks of a group find one another on a machine: rank 0 hands them an anonymous file over a socket.

The socket's address is abstract (no entry in any file system), so nothing is left behind whoever dies. Packets of JSON:

    member → rank 0    its Claim
    rank 0 → member    {"here": ranks that have come}, at every change
    rank 0 → member    {"file": true} with the descriptor, when all are there
    member → rank 0    {"ready": true}, it has entered
    rank 0 → member    {"go": true}, all have entered
    either             {"error": message}: the group cannot be
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

PACKET_BYTES = 1 << 16
ADDRESS_BYTES = 107  # what a sockaddr_un holds
RETRY_SECONDS = 0.02
GRACE_SECONDS = 1.0  # that a rank in touch with rank 0 waits longer, so that all hear the same reason


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a rank believes about its group."""

    name: str
    rank: int
    size: int
    capacity_bytes: int


def address(job: str, name: str) -> bytes:
    """The socket of a job's group: one per user."""
    readable = f"\0mindpangu/{os.getuid()}/{job}/{name}".encode()
    if len(readable) <= ADDRESS_BYTES:
        return readable
    return f"\0mindpangu/{os.getuid()}/{hashlib.sha256(readable).hexdigest()}".encode()


def host(
    address: bytes, claim: Claim, timeout: float, make_file: Callable[[], int], enter: Callable[[int], None]
) -> tuple[int, socket.socket]:
    """Rank 0: waits for the others, makes the file, hands it to them.

    Args:
        make_file: returns the file's descriptor.
        enter: what a rank does with the descriptor before the group is complete.

    Returns:
        The descriptor, and the socket, which keeps the address as long as it is open.

    Raises:
        TimeoutError, RuntimeError: as `group.join`.
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
        listener.shutdown(socket.SHUT_RDWR)  # whoever comes now is refused at once
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


def _gather(listener, members, claim, deadline, timeout):
    """Fills `members`; raises if they do not come in time, or claim what does not fit."""
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        strangers = set()  # connected, and have said nothing yet
        came = {0}  # some may have gone again, but they are not whom the others waited for
        try:
            while len(members) < claim.size - 1:
                if time.monotonic() > deadline:
                    raise _late(claim.name, claim.size, came, timeout)
                for key, _ in selector.select(max(deadline - time.monotonic(), 0)):
                    peer = key.fileobj
                    if peer is listener:
                        peer, _ = listener.accept()
                        selector.register(peer, selectors.EVENT_READ)
                        strangers.add(peer)
                        continue
                    words = _receive(peer, deadline)
                    if peer in strangers and words and _is_ours(peer):
                        strangers.discard(peer)
                        came.add(_admit(peer, Claim(**words), members, claim))
                    else:  # gone, or another user's: it does not count
                        selector.unregister(peer)
                        strangers.discard(peer)
                        for rank in [rank for rank, member in members.items() if member is peer]:
                            del members[rank]
                        peer.close()
                    for member in members.values():
                        _send(member, {"here": sorted(came)})
        finally:
            for stranger in strangers:
                stranger.close()


def _admit(peer, theirs, members, claim):
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
    """Any other rank: returns the descriptor of the group's file. Raises as `group.join`."""
    deadline = time.monotonic() + timeout
    here: set[int] = set()
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                peer.connect(address)
            except OSError:  # not there yet
                time.sleep(RETRY_SECONDS)
                continue
            here = {0, claim.rank}
            if not _is_ours(peer):
                raise RuntimeError(f"group {claim.name}: its address is taken by another user's process")
            descriptor = _converse(peer, claim, deadline + GRACE_SECONDS, here, enter)
            if descriptor is not None:
                return descriptor
    raise _late(claim.name, claim.size, here or {claim.rank}, timeout)


def _converse(peer, claim, deadline, here, enter):
    """Returns the descriptor, or None if rank 0 has gone or time is up; `here` follows who has come."""
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
    if descriptor is not None:  # entered, but the group has not become complete
        os.close(descriptor)
        raise RuntimeError(f"group {claim.name}: rank 0 has died while the ranks joined")
    return None


def _late(name, size, here, timeout):
    missing = sorted(set(range(size)) - here)
    if not missing:
        text = f"the ranks of group {name} all came, but not all stayed for {timeout:g} s"
    elif 0 in missing and size > 2:
        text = f"rank 0 of group {name}, which the others wait for, did not join within {timeout:g} s"
    else:
        ranks = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
        text = f"{ranks} of group {name} did not join within {timeout:g} s"
    return TimeoutError(text)


def _is_ours(peer) -> bool:
    """Abstract sockets have no permissions: any user of the machine can reach them."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1] == os.getuid()


def _send(peer, words) -> None:
    with contextlib.suppress(OSError):  # whoever has gone is noticed when its answer is read
        peer.send(json.dumps(words).encode())


def _receive(peer, deadline) -> dict:
    """The next packet; {} if the other has gone or time is up."""
    peer.settimeout(max(deadline - time.monotonic(), 0.001))
    try:
        data = peer.recv(PACKET_BYTES)
    except OSError:
        return {}
    return json.loads(data) if data else {}
