"""What can be read of a recording that breaks off: a recorder was killed, a disk was full, a copy was interrupted.

librealsense refuses such a file outright: the index of a .bag (rosbag 2.0, wiki.ros.org/Bags/Format/2.0) is at its end,
and a .db3 (rosbag2: an SQLite database) shorter than its header says is malformed to SQLite. Here the messages that are
wholly there go, unchanged, into a new file with an index of its own.
"""

import contextlib
import mmap
import os
import re
import sqlite3
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mde.errors import MdeError

Message = TypeVar("Message")
BAG, DB3 = b"#ROSBAG V2.0\n", b"SQLite format 3\0"
BAG_HEADER, CHUNK, CONNECTION, MESSAGE, INDEX, CHUNK_INFO = 3, 5, 7, 2, 4, 6  # "op", a record's kind
BAG_HEADER_SIZE = 4096  # of the record; padded, to be written over once the index's place is known
OWN = re.compile("/device_[0-9]|/file_version")  # begins a topic of librealsense, and of nobody else
LEAF = 13  # first byte of a page that holds rows of a table (sqlite.org/fileformat2.html)


@dataclass(frozen=True)
class Salvaged:
    """`path`: a whole recording, which librealsense opens. `report`: one line, what is in it and how much is lost."""

    path: Path
    report: str


class _Found(NamedTuple):
    topics: Counter[str]  # messages by topic; 0 where none is whole
    read: int  # bytes of the recording
    size: int  # bytes it had; of one that was never closed, bytes it has


def salvage(path: Path, folder: Path) -> Salvaged:
    """Writes what can be read of the truncated .bag or .db3 at `path` into `folder`; the original is not changed.

    It holds the first frames recorded, bit for bit; one stream may end a frame before another. Zeros at the file's end,
    of a copy that reserved its room first, count as missing. Takes as much room in `folder` as the file has, for a .db3
    twice while it works. MdeError when the file is no recording of librealsense or breaks off before its first whole
    frame, and when something cannot be read or written.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(DB3))
            if start.startswith(BAG):
                suffix, rescue = ".bag", _salvage_bag  # librealsense goes by the name's ending
            elif start == DB3:
                suffix, rescue = ".db3", _salvage_db3
            else:
                raise MdeError(f"{path}: not a recording (.bag, .db3), or nothing of one; choose another file")
            folder.mkdir(parents=True, exist_ok=True)
            with (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
                tempfile.TemporaryDirectory(dir=folder) as work,
            ):
                found = rescue(view, Path(work))
                frames = Counter({_stream(t): n for t, n in found.topics.items() if n and _is_image(t)})
                if found.topics and not any(map(OWN.match, found.topics)):
                    raise of_ros(path)
                if not frames:
                    raise MdeError(f"{path}: breaks off before its first whole frame; record or copy it again")
                whole = folder / f"{path.stem}_salvaged{suffix}"
                os.replace(Path(work) / "whole", whole)
    except (OSError, sqlite3.Error) as error:
        reason = f"{error}; is the file there, and room in the folder?"
        raise MdeError(f"{path}: not salvaged into {folder}: {reason}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        raise MdeError(f"{path}: damaged, nothing of it can be read; record or copy it again") from error
    streams = ", ".join(f"{n} of {stream}" for stream, n in sorted(frames.items()))
    size = f"{found.read / 1e6:.2f} of {found.size / 1e6:.2f} MB"
    messages = f"{found.topics.total()} messages (frames: {streams})"
    return Salvaged(whole, f"{path.name} breaks off: {messages} in {size} read, the rest is lost")


def of_ros(path: Path) -> MdeError:
    """The error for a recording of the ROS wrapper: of the same format, but of other messages."""
    return MdeError(
        f"{path}: recorded by ROS (rosbag record, ros2 bag record), not by librealsense; record with librealsense "
        "(realsense-viewer, rs-record), or export its frames to a folder"
    )


def recorded_images(path: Path) -> Counter[str]:
    """Images of each stream ("Color_0") that the .bag or .db3 at `path` holds by its own index.

    Empty where the file breaks off or its structure is damaged: librealsense 2.59 searches for ever in such a .bag.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(BAG)) == BAG:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                    topics = _bag_index(view)
            else:
                topics = _db3_index(path)
    except (OSError, LookupError, TypeError, ValueError, struct.error, sqlite3.Error):  # no file, or fields of none
        return Counter()
    return Counter({_stream(topic): count for topic, count in topics.items() if _is_image(topic)})


def _bag_index(view: mmap.mmap) -> Counter[str]:
    """Messages by topic; empty unless record follows record from the file's start to its end."""
    names: dict[bytes, str] = {}
    topics: Counter[str] = Counter()
    position = index = len(BAG)
    for record in _records(view, position, len(view)):
        if record.op == BAG_HEADER:
            index = int.from_bytes(record.fields[b"index_pos"], "little")
        elif record.op == CONNECTION:
            names[record.fields[b"conn"]] = record.fields[b"topic"].decode()
        elif record.op == CHUNK_INFO:
            for connection, count in struct.iter_unpack("<4sI", view[record.data : record.end]):
                topics[names[connection]] += count
        elif record.start >= index:
            return Counter()
        position = record.end
    return topics if position == len(view) else Counter()


def _db3_index(path: Path) -> Counter[str]:
    query = "SELECT name, (SELECT COUNT(*) FROM messages WHERE topic_id = topics.id) FROM topics"
    with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        return Counter(dict(_rows(database, query)))


def _stream(topic: str) -> str:
    return topic.split("/image/")[0].split("/")[-1]


def _is_image(topic: str) -> bool:
    return "/image/data" in topic  # /device_0/sensor_0/Depth_0/image/data, in a .db3 with /compressedDepth after it


def _before_last_image(messages: Iterable[Message], topic: Callable[[Message], str]) -> Iterator[Message]:
    """All messages before the last image.

    An image's frame number and time stamp are messages written after it; librealsense plays an image without them as
    frame 0 at time 0. Nothing says how many belong to it: only the next image does.
    """
    held: list[Message] = []
    for message in messages:
        if _is_image(topic(message)):
            yield from held
            held.clear()
        held.append(message)


def _length(view: mmap.mmap, block: int = 1 << 20) -> int:
    """Bytes before the zeros at the end.

    SQLite takes a row whose last page is zeros for whole, and so takes every row of small images that lost its own.
    """
    end = len(view)
    while end:
        start = max(0, end - block)
        if used := len(view[start:end].rstrip(b"\0")):
            return start + used
        end = start
    return 0


class _Record(NamedTuple):
    op: int
    fields: dict[bytes, bytes]
    start: int
    data: int
    end: int


class _BagMessage(NamedTuple):
    topic: str
    connection: bytes
    time: bytes  # seconds and nanoseconds, uint32 each
    offset: int  # in the chunk's content
    chunk: slice | bytes  # the chunk's record: where it is in the old file, or a new one
    read: int  # where the chunk ends in the old file


def _salvage_bag(view: mmap.mmap, work: Path) -> _Found:
    """Chunks (messages by the hundred kB, compressed) are copied as they are, the index behind each is made anew."""
    connections: dict[bytes, bytes] = {}
    names: dict[bytes, str] = {}
    messages = _before_last_image(_bag_messages(view, connections, names), lambda message: message.topic)
    topics: Counter[str] = Counter()
    used: dict[bytes, None] = {}
    infos: list[bytes] = []
    read = 0
    with (work / "whole").open("xb") as out:
        out.write(BAG + _bag_header(0, 0, 0))
        for chunk, group in groupby(messages, key=lambda message: message.chunk):
            position = out.tell()
            out.write(view[chunk] if isinstance(chunk, slice) else chunk)
            entries: dict[bytes, list[bytes]] = {}
            times = []
            for message in group:
                entries.setdefault(message.connection, []).append(message.time + struct.pack("<I", message.offset))
                times.append(message.time)
                topics[message.topic] += 1
                read = message.read
            used |= dict.fromkeys(entries)
            for connection, own in entries.items():
                out.write(_record(INDEX, b"".join(own), ver=_uint32(1), conn=connection, count=_uint32(len(own))))
            times.sort(key=lambda time: struct.unpack("<II", time))
            counts = b"".join(connection + _uint32(len(own)) for connection, own in entries.items())
            fields = {"start_time": times[0], "end_time": times[-1], "chunk_pos": struct.pack("<Q", position)}
            infos.append(_record(CHUNK_INFO, counts, ver=_uint32(1), count=_uint32(len(entries)), **fields))
        index = out.tell()
        out.writelines([connections[connection] for connection in used] + infos)
        out.seek(len(BAG))
        out.write(_bag_header(index, len(used), len(infos)))
    header = next(_records(view, len(BAG), len(view)), None)
    closed = int.from_bytes(header.fields.get(b"index_pos", b""), "little") if header else 0
    topics.update(dict.fromkeys(names.values(), 0))
    return _Found(topics, read, closed or len(view))


def _bag_messages(view: mmap.mmap, connections: dict[bytes, bytes], names: dict[bytes, str]) -> Iterator[_BagMessage]:
    """Every whole message before the first damage; the connections' records and topics are noted on the way."""
    length = _length(view)
    for record in _records(view, len(BAG), length):
        if record.op != CHUNK:
            continue
        # The lengths of a chunk are filled in when it is closed: a killed recorder leaves 0 in the last one.
        closed = record.data < record.end <= length
        read = record.end if closed else length
        content = _content(record.fields[b"compression"], view[record.data : read], closed)
        found, used = [], 0
        for inner in _records(content, 0, len(content)):
            if inner.end > len(content):
                break
            used = inner.end
            connection = inner.fields[b"conn"]
            if inner.op == CONNECTION:
                connections.setdefault(connection, content[inner.start : inner.end])
                names[connection] = inner.fields[b"topic"].decode()
            elif inner.op == MESSAGE:
                found.append((names[connection], connection, inner.fields[b"time"], inner.start))
        whole = closed and used == int.from_bytes(record.fields[b"size"], "little")
        chunk: slice | bytes = slice(record.start, record.end)
        if not whole:
            chunk = _record(CHUNK, content[:used], compression=b"none", size=_uint32(used))
        for message in found:
            yield _BagMessage(*message, chunk, read)
        if not whole:
            return


def _records(data: mmap.mmap | bytes, position: int, length: int) -> Iterator[_Record]:
    """The records in data[position:length]. The last one may end beyond: it breaks off."""
    while position + 4 <= length:
        header = position + 4
        after = header + int.from_bytes(data[position:header], "little")
        if after + 4 > length:
            return
        fields = {}
        while header < after:
            end = header + 4 + int.from_bytes(data[header : header + 4], "little")
            name, _, fields[name] = data[header + 4 : end].partition(b"=")
            header = end
        if not fields.get(b"op"):
            return
        end = after + 4 + int.from_bytes(data[after : after + 4], "little")
        yield _Record(fields[b"op"][0], fields, position, after + 4, end)
        position = end


def _record(op: int, data: bytes, **fields: bytes) -> bytes:
    pairs = [f"{name}=".encode() + value for name, value in {"op": bytes([op]), **fields}.items()]
    header = b"".join(_uint32(len(pair)) + pair for pair in pairs)
    return _uint32(len(header)) + header + _uint32(len(data)) + data


def _bag_header(index: int, connections: int, chunks: int) -> bytes:
    fields = {"conn_count": _uint32(connections), "chunk_count": _uint32(chunks), "index_pos": struct.pack("<Q", index)}
    return _record(BAG_HEADER, b" " * (BAG_HEADER_SIZE - len(_record(BAG_HEADER, b"", **fields))), **fields)


def _uint32(number: int) -> bytes:
    return struct.pack("<I", number)


def _content(compression: bytes, data: bytes, closed: bool) -> bytes:
    """A chunk's content; of one that was not closed, as much as can be had: LZ4 unpacks by blocks (here of 1 MB).

    Empty where a closed one is damaged: LZ4 keeps a check sum.
    """
    if compression == b"none":
        return data
    try:
        from lz4.frame import LZ4FrameDecompressor
    except ImportError as error:
        raise MdeError("a .bag that breaks off needs lz4 to be read; pip install -e '.[l515]'") from error
    unpacker = LZ4FrameDecompressor()
    try:
        content: bytes = unpacker.decompress(data)
    except RuntimeError:
        return b""
    return content if unpacker.eof or not closed else b""


def _salvage_db3(view: mmap.mmap, work: Path) -> _Found:
    """SQLite itself reads the rows, from a copy that says how short it is: a row with a page beyond is an error then.

    (With the missing pages as zeros, a row that lacks only its last one would end in zeros, without an error.)
    """
    stored = int.from_bytes(view[16:18], "big")
    page = 65536 if stored == 1 else stored  # what two bytes cannot hold
    pages = _length(view) // page if page else 0
    topics: Counter[str] = Counter()
    if not pages:
        return _Found(topics, 0, len(view))
    broken = work / "broken"
    with broken.open("xb") as copy, memoryview(view) as content, content[: pages * page] as part:
        copy.write(part)
        copy.seek(28)
        copy.write(pages.to_bytes(4, "big"))
    with _database(broken) as old, _database(work / "whole") as new:
        named = list(_rows(old, "SELECT * FROM topics"))
        names = {row[0]: row[1] for row in named}
        if not named:
            return _Found(topics, 0, len(view))
        for database in (old, new):  # files of our own, which nobody misses after a power failure
            database.execute("PRAGMA journal_mode=OFF")
            database.execute("PRAGMA synchronous=OFF")
        new.execute("BEGIN")
        for (statement,) in _rows(old, "SELECT sql FROM sqlite_master"):
            new.execute(statement)
        new.executemany(f"INSERT INTO topics VALUES ({', '.join('?' * len(named[0]))})", named)
        leaves = np.flatnonzero(np.memmap(broken, mode="r")[::page] == LEAF) + 1
        messages = (row for row in _db3_messages(old, leaves.tolist()) if row[1] in names)
        for row in _before_last_image(messages, lambda row: names[row[1]]):
            new.execute("INSERT INTO messages VALUES (?, ?, ?, ?)", row)
            topics[names[row[1]]] += 1
        new.execute("COMMIT")
    topics.update(dict.fromkeys(names.values(), 0))
    return _Found(topics, pages * page, int.from_bytes(view[28:32], "big") * page)


def _database(path: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(path, isolation_level=None))


def _rows(database: sqlite3.Connection, query: str) -> Iterator[tuple[Any, ...]]:
    """The rows up to the first that is damaged."""
    with contextlib.suppress(sqlite3.DatabaseError):
        yield from database.execute(query)


def _db3_messages(database: sqlite3.Connection, leaves: list[int]) -> Iterator[tuple[int, int, int, bytes]]:
    """(id, topic, time, data) in the order written, up to the first damaged one.

    A recorder only appends, so the pages with rows are in order. The tree above them is not used: its root comes to
    point to a page made when some 2,000 messages were written (a quarter of a minute of two streams), and a file that
    breaks off before that page would have no message at all. Each page of rows is a tree by itself: the table's root is
    set to one after the other. A page of `topics` has no blobs.
    """
    for leaf in leaves:
        database.execute("PRAGMA writable_schema=ON")
        database.execute("UPDATE sqlite_master SET rootpage = ? WHERE name = 'messages'", (leaf,))
        database.execute("PRAGMA writable_schema=RESET")  # reads the changed schema
        query = "SELECT id, topic_id, timestamp, data FROM messages NOT INDEXED WHERE typeof(data) = 'blob'"
        try:
            yield from database.execute(query)
        except sqlite3.DatabaseError:
            return
