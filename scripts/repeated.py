"""Finds passages of more than ten lines that stand twice in the sources, and fails if there is one.

Lines count without their indentation; empty lines, and lines without a letter or digit, do not count.
"""

import pathlib
import subprocess
import sys
from collections import defaultdict

FOLDERS = ("lib", "native", "test", "bench", "soak", "demo", "scripts")
SUFFIXES = (".erl", ".hrl", ".rs", ".py", ".sh")
MAX_LINES = 10


def lines_of(path):
    """The lines of a file that count, each with its number."""
    numbered = enumerate(pathlib.Path(path).read_text().splitlines(), start=1)
    stripped = ((number, line.strip()) for number, line in numbered)
    return [(number, line) for number, line in stripped if any(map(str.isalnum, line))]


def passages(files):
    """Where each passage of one line more than allowed begins."""
    found = defaultdict(list)
    for path, lines in files.items():
        for at in range(len(lines) - MAX_LINES):
            found[tuple(line for _, line in lines[at : at + MAX_LINES + 1])].append((path, at))
    return found


def repeated(files):
    """Pairs of places with the same passage, each pair once, with how many lines are the same."""
    pairs = set()
    for places in passages(files).values():
        pairs.update((one, other) for at, one in enumerate(places) for other in places[at + 1 :])
    for one, other in sorted(pairs):
        before = tuple((path, at - 1) for path, at in (one, other))
        if before in pairs:
            continue
        length = MAX_LINES + 1
        while (tuple((path, at + length - MAX_LINES) for path, at in (one, other))) in pairs:
            length += 1
        yield length, *(f"{path}:{files[path][at][0]}" for path, at in (one, other))


def main():
    listed = subprocess.run(["git", "ls-files", *FOLDERS], check=True, capture_output=True, text=True).stdout
    files = {path: lines_of(path) for path in listed.splitlines() if path.endswith(SUFFIXES)}
    found = list(repeated(files))
    for length, one, other in found:
        print(f"{length} lines stand twice: {one} and {other}")
    sys.exit(1 if found else 0)


main()
