"""Draw the pages of a PDF in a process of its own: a hostile one can take hours and all memory."""

import math
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from subprocess import DEVNULL, PIPE, Popen
from threading import Timer

DPI = 200
LONGEST = 3500  # pixels of the longer side: a larger page is drawn with less resolution
SECONDS = 10  # for a page
MEMORY = 1_000_000_000  # bytes, beside the file's; only Linux enforces it
HEAD = struct.Struct(">II")  # before each page: its height and width; or 0 and an error's length


def drawn_pages(data: bytes, max_pixels: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield the height, the width and the RGB bytes of each page of a PDF.

    For a page that cannot be drawn the height is 0, and the bytes are the reason.

    Args:
        data: The file's content.
        max_pixels: The largest width times height; a larger page is not drawn.

    Raises:
        ValueError: If the process ends early; the following pages are lost.
    """
    # -P: the modules of this folder do not hide others.
    command = [sys.executable, "-P", __file__, str(max_pixels)]
    with Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL) as process:
        assert process.stdin
        assert process.stdout
        try:
            late = _kill_later(process)
            with suppress(OSError):  # it has ended; its exit code says more
                process.stdin.write(data)
                process.stdin.close()
            while head := process.stdout.read(HEAD.size):
                height, width = HEAD.unpack(head)
                content = process.stdout.read(3 * height * width or width)
                late.cancel()
                yield height, width, content
                late = _kill_later(process)
            code = process.wait()
        finally:
            late.cancel()
            process.kill()
    if code:
        raise ValueError(f"it needs more than {SECONDS} seconds or {MEMORY:,} bytes to draw")


def _kill_later(process: "Popen[bytes]") -> Timer:
    timer = Timer(SECONDS, process.kill)
    timer.start()
    return timer


def _draw(max_pixels: int) -> None:
    """Read a PDF from stdin, and write its pages to stdout."""
    import pypdfium2

    data = sys.stdin.buffer.read()
    with suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        most = MEMORY + 2 * len(data)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        return _write(0, str(error).encode())
    for number in range(len(document)):
        try:
            page = document[number]
            scale = min(DPI / 72, LONGEST / max(page.get_size()))
            width, height = (math.ceil(side * scale) for side in page.get_size())
            if width * height > max_pixels:
                raise ValueError(f"{width:,} x {height:,} pixels, more than {max_pixels:,}")
            bitmap = page.render(scale=scale, rev_byteorder=True)
            _write(bitmap.height, bytes(bitmap.buffer), bitmap.width)
            page.close()
        except (pypdfium2.PdfiumError, ValueError) as error:
            _write(0, str(error).encode())


def _write(height: int, content: bytes, width: int = 0) -> None:
    sys.stdout.buffer.write(HEAD.pack(height, width or len(content)) + content)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _draw(int(sys.argv[1]))
