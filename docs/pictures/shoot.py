#!/usr/bin/env python3
"""Runs commands on a terminal of its own and draws what that shows as SVG: a picture in dark and one in light."""

import argparse
import fcntl
import html
import os
import pty
import re
import select
import struct
import termios
import time

import pyte

WIDTH, HEIGHT, EDGE = 8.43, 18, 14
# (background, foreground, the sixteen colours in the order of a terminal)
NAMES = ["black", "red", "green", "brown", "blue", "magenta", "cyan", "white"]
THEMES = {
    "dark": ("#0d1117", "#e6edf3", ["#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4"]),
    "light": ("#ffffff", "#1f2328", ["#24292f", "#cf222e", "#116329", "#7d4e00", "#0969da", "#8250df", "#1b7c83", "#6e7781"]),
}
LIMIT = 60
# pyte knows no faint text; nothing of ours blinks.
pyte.graphics.TEXT[2] = "+blink"


def run(command, screen, until):
    """Feeds the screen with what the command shows; with `until`, only as far as the picture that has all of it."""
    stream = pyte.ByteStream(screen)
    stream.feed(f"\x1b[1m$ {command}\x1b[0m\r\n".encode())
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm-256color"
        os.environ.pop("NO_COLOR", None)
        os.execvp("sh", ["sh", "-c", command])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", screen.lines, screen.columns, 0, 0))
    kept, deadline = None, time.monotonic() + LIMIT
    while time.monotonic() < deadline and select.select([terminal], [], [], LIMIT)[0]:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        stream.feed(data)
        if until and kept is None and all(re.search(text, "\n".join(screen.display)) for text in until):
            kept = cells(screen)
    os.waitpid(child, 0)
    if until and kept is None:
        raise SystemExit(f"`{command}` never showed {until}")
    return kept or cells(screen)


def cells(screen):
    rows = [[screen.buffer[y][x] for x in range(screen.columns)] for y in range(screen.lines)]
    while rows and all(cell.data == " " and cell.bg == "default" and not cell.reverse for cell in rows[-1]):
        rows.pop()
    return rows


def svg(rows, columns, theme):
    background, foreground, palette = THEMES[theme]

    def colour(name, default):
        name = name.removeprefix("bright")
        return palette[NAMES.index(name)] if name in NAMES else f"#{name}" if len(name) == 6 else default

    width, height = columns * WIDTH + 2 * EDGE, len(rows) * HEIGHT + 2 * EDGE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}"'
        ' font-family="ui-monospace, SFMono-Regular, Menlo, \'DejaVu Sans Mono\', monospace" font-size="14">',
        f'<rect width="100%" height="100%" rx="8" fill="{background}"/>',
    ]
    for y, row in enumerate(rows):
        x = 0
        while x < len(row):
            end, look = x, look_of(row[x])
            while end < len(row) and look_of(row[end]) == look:
                end += 1
            text, (fg, bg, bold, dim, reverse) = "".join(cell.data for cell in row[x:end]), look
            front, back = colour(fg, foreground), colour(bg, background)
            if reverse:
                front, back = back, front
            left, top, span = EDGE + x * WIDTH, EDGE + y * HEIGHT, (end - x) * WIDTH
            if back != background:
                parts.append(f'<rect x="{left:.1f}" y="{top}" width="{span:.1f}" height="{HEIGHT}" fill="{back}"/>')
            if text.strip():
                style = (' font-weight="bold"' if bold else "") + (' opacity="0.6"' if dim else "")
                parts.append(
                    f'<text x="{left:.1f}" y="{top + 13.5:.1f}" fill="{front}" textLength="{span:.1f}" xml:space="preserve"{style}>'
                    f"{html.escape(text)}</text>"
                )
            x = end
    return "\n".join([*parts, "</svg>", ""])


def look_of(cell):
    return (cell.fg, cell.bg, cell.bold, cell.blink, cell.reverse)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--columns", type=int, default=80)
    arguments.add_argument("--until", action="append", help="the picture that shows this expression (repeatable)")
    arguments.add_argument("out", help="file name without -dark.svg and -light.svg")
    arguments.add_argument("command")
    given = arguments.parse_args()
    rows = run(given.command, pyte.Screen(given.columns, 60), given.until)
    for theme in THEMES:
        with open(f"{given.out}-{theme}.svg", "w", encoding="utf-8") as file:
            file.write(svg(rows, given.columns, theme))


if __name__ == "__main__":
    main()
