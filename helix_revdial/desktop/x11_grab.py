"""
Take one picture of an X11 root window and write it to standard output.

A program of its own, run by L{helix_revdial.desktop.capture}: taking and
encoding a picture blocks for a tenth of a second, and forever when the X
server hangs, so it happens where it can be killed.  Pillow speaks to the X
server through the XCB that its wheels bring along: no system package is
needed.  Imports nothing of ours, so that it starts quickly.

Usage: C{python x11_grab.py DISPLAY png|jpeg QUALITY}
"""

from __future__ import annotations

import sys

from PIL import ImageGrab


def main(arguments: list[str]) -> int:
    """
    @param arguments: The display, the format, and the JPEG quality.
    @return: The exit code: 0, or 1 after one line on standard error.
    """
    display, pictureFormat, quality = arguments
    try:
        picture = ImageGrab.grab(xdisplay=display)
    except OSError as e:
        sys.stderr.write(f"cannot capture the X11 display {display}: {e}\n")
        return 1
    out = sys.stdout.buffer
    if pictureFormat == "jpeg":
        picture.save(out, "JPEG", quality=int(quality))
    else:
        # The fastest level: a picture of a desktop is sent once.
        picture.save(out, "PNG", compress_level=1)
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
