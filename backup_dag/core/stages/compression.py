"""gzip, both ways: one member, readable by any gunzip.

Levels 0 to 3 are ISA-L's (about ten times zlib's speed at its ratio), 4 to 9 zlib-ng's (smaller).
"""

from collections.abc import Iterator
from contextlib import contextmanager

from isal import igzip_lib, igzip_threaded
from zlib_ng import gzip_ng_threaded

from backup_dag.core.errors import IntegrityError
from backup_dag.core.stream import BLOCK, Writer

_FASTEST_OF_ZLIB_NG = 4
_WORTH_A_BLOCK = BLOCK // 2  # smaller ones would cost some of the ratio


@contextmanager
def compressing(sink: Writer, level: int) -> Iterator[Writer]:
    """A writer whose bytes reach `sink` as gzip, compressed in a thread of its own.

    An error of the sink is raised by a later write, or on leaving the block.
    """
    library = igzip_threaded if level < _FASTEST_OF_ZLIB_NG else gzip_ng_threaded
    with library.open(_File(sink), "wb", compresslevel=level, threads=1, block_size=BLOCK) as file:
        blocks = _Blocks(file.raw)
        yield blocks
        blocks.finish()


@contextmanager
def decompressing(sink: Writer) -> Iterator[Writer]:
    """A writer that takes gzip and pushes the plain bytes to `sink`, in blocks of bounded size.

    Raises:
        IntegrityError: not gzip, damaged, ended early, or followed by something else.
    """
    gunzip = _Gunzip(sink)
    yield gunzip
    gunzip.finish()


class _File:
    """A writer that looks like a file to the compressors."""

    def __init__(self, sink: Writer) -> None:
        self.write = sink.write

    def flush(self) -> None:
        pass


class _Blocks:
    """Hands large blocks to the compressor as they are, and gathers small ones: its own buffer copies all."""

    def __init__(self, compressor: Writer) -> None:
        self._compressor = compressor
        self._gathered: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        self._gathered.append(data)
        self._size += len(data)
        if self._size >= _WORTH_A_BLOCK:
            self.finish()

    def finish(self) -> None:
        """Hands on what has been gathered."""
        if self._gathered:
            whole = self._gathered[0] if len(self._gathered) == 1 else b"".join(self._gathered)
            self._gathered, self._size = [], 0
            self._compressor.write(whole)


class _Gunzip:
    def __init__(self, sink: Writer) -> None:
        self._sink = sink
        self._inflater = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)

    def write(self, data: bytes) -> None:
        if not data:
            return
        if self._inflater.eof:
            raise _broken("there are bytes after its end")
        try:
            self._sink.write(self._inflater.decompress(data, BLOCK))
            while not (self._inflater.needs_input or self._inflater.eof):
                self._sink.write(self._inflater.decompress(b"", BLOCK))
        except igzip_lib.error as error:  # type: ignore[misc]
            raise _broken(str(error)) from error
        if self._inflater.unused_data:
            raise _broken("there are bytes after its end")

    def finish(self) -> None:
        if not self._inflater.eof:
            raise _broken("it ends in the middle")


def _broken(how: str) -> IntegrityError:
    return IntegrityError(
        f"decompressing failed, the gzip stream is broken: {how}",
        hint="use another copy of this backup, or another backup",
    )
