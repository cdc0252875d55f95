#!/usr/bin/env python3
"""Runs commands on a terminal of its own and draws what that shows as SVG: a picture in dark and one in light."""

import argparse
import fcntl
import html
import os
import pty
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
# Seconds of a moving picture: what is typed stands alone, what is printed is read, and between two pictures.
TYPED, READ, LEAST = 0.8, 2.5, 0.1
# pyte knows no faint text; nothing of ours blinks.
pyte.graphics.TEXT[2] = "+blink"


def run(command, screen):
    """Feeds the screen with what the command shows; gives its cells after each piece of it."""
    stream = pyte.ByteStream(screen)
    stream.feed(f"\x1b[1m$ {command}\x1b[0m\r\n".encode())
    yield cells(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm-256color"
        os.environ.pop("NO_COLOR", None)
        os.execvp("sh", ["sh", "-c", command])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", screen.lines, screen.columns, 0, 0))
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and select.select([terminal], [], [], LIMIT)[0]:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        stream.feed(data)
        yield cells(screen)
    os.waitpid(child, 0)


def film(commands, screen):
    """What commands show one after another, each picture with the second at which it appears, and the end."""
    frames, now = [], 0.0
    for command in commands:
        shots = run(command, screen)
        frames.append((now, next(shots)))
        typed, begun = now + TYPED, time.monotonic()
        for shown in shots:
            now = typed + time.monotonic() - begun
            if now - frames[-1][0] < LEAST:
                frames[-1] = (frames[-1][0], shown)
            else:
                frames.append((now, shown))
        now += READ
        pyte.ByteStream(screen).feed(b"\r\n")
    return frames, now


def cells(screen):
    rows = [[screen.buffer[y][x] for x in range(screen.columns)] for y in range(screen.lines)]
    while rows and all(cell.data == " " and cell.bg == "default" and not cell.reverse for cell in rows[-1]):
        rows.pop()
    return rows


def colour(name, default, palette):
    name = name.removeprefix("bright")
    return palette[NAMES.index(name)] if name in NAMES else f"#{name}" if len(name) == 6 else default


def line(y, row, theme):
    """One line of the screen."""
    background, foreground, palette = THEMES[theme]
    x, parts = 0, []
    while x < len(row):
        end, look = x, look_of(row[x])
        while end < len(row) and look_of(row[end]) == look:
            end += 1
        text, (fg, bg, bold, dim, reverse) = "".join(cell.data for cell in row[x:end]), look
        front, back = colour(fg, foreground, palette), colour(bg, background, palette)
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
    return parts


def svg(body, columns, lines, theme):
    width, height = columns * WIDTH + 2 * EDGE, lines * HEIGHT + 2 * EDGE
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}"'
        ' font-family="ui-monospace, SFMono-Regular, Menlo, \'DejaVu Sans Mono\', monospace" font-size="14">'
    )
    return "\n".join([head, f'<rect width="100%" height="100%" rx="8" fill="{THEMES[theme][0]}"/>', *body, "</svg>", ""])


def moving(frames, end, lines, theme):
    """Each line is there for as long as it stays the same; who wants no motion sees the last picture."""
    body, styles = [], {}
    for y in range(lines):
        row_of = [line(y, frame[y], theme) if y < len(frame) else [] for _, frame in frames]
        first = 0
        while first < len(frames):
            last = first
            while last + 1 < len(frames) and row_of[last + 1] == row_of[first]:
                last += 1
            if row_of[first]:
                begin = 100 * frames[first][0] / end
                over = 100 * frames[last + 1][0] / end if last + 1 < len(frames) else 100
                name = styles.setdefault((f"{begin:.2f}", f"{over:.2f}"), f"t{len(styles)}")
                rest = "" if over == 100 else ' visibility="hidden"'
                body.append(f'<g class="{name}"{rest}>{"".join(row_of[first])}</g>')
            first = last + 1
    rules = [
        f".{name}{{animation:{name} {end:.1f}s step-end infinite}}"
        f"@keyframes {name}{{0%{{visibility:hidden}}{begin}%{{visibility:visible}}{over}%{{visibility:hidden}}}}"
        for (begin, over), name in styles.items()
    ]
    style = f"<style>@media (prefers-reduced-motion: no-preference) {{{''.join(rules)}}}</style>"
    return [style, *body]


def look_of(cell):
    return (cell.fg, cell.bg, cell.bold, cell.blink, cell.reverse)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--columns", type=int, default=80)
    arguments.add_argument("--moving", type=int, metavar="LINES", help="a picture that moves, of so many lines")
    arguments.add_argument("out", help="file name without -dark.svg and -light.svg")
    arguments.add_argument("command", nargs="+")
    given = arguments.parse_args()
    screen = pyte.Screen(given.columns, given.moving or 60)
    frames, end = film(given.command, screen) if given.moving else ([], 0)
    rows = [] if given.moving else list(run(*given.command, screen))[-1]
    for theme in THEMES:
        body = [part for y, row in enumerate(rows) for part in line(y, row, theme)]
        body = moving(frames, end, given.moving, theme) if given.moving else body
        with open(f"{given.out}-{theme}.svg", "w", encoding="utf-8") as file:
            file.write(svg(body, given.columns, given.moving or len(rows), theme))


if __name__ == "__main__":
    main()
