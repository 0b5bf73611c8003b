"""Figures of a run that a page quotes.

Usage: figures.py [--check] RESULTS PAGE. Reads results.json in the folder RESULTS and fills the page:
`<!-- figure:NAME -->` up to `<!-- end -->` becomes the figure NAME. With --check the page stays as it is, each figure
that differs is printed, and the exit status is 1 if one does. A figure that the run has not measured stays as it is.
"""

import pathlib
import re
import sys

from measured import PLAIN, Run, median

MILLION = 1_000_000


def session_bytes(store):
    def figure(run):
        rows = run.rows("memory", store=store, workload=PLAIN, size=MILLION)
        return f"{median([row['churned']['resident'] for row in rows]):,.0f} bytes" if rows else None

    return figure


def of_process(store, key, shown):
    """Of OTP's cache process while it fills with a million sessions."""

    def figure(run):
        row = run.row("process", store=store, phase="filling", size=MILLION)
        return shown(row[key]) if row else None

    return figure


def size(size_bytes):
    return f"{size_bytes / 2**10:,.0f} KiB" if size_bytes < 2**20 else f"{size_bytes / 2**20:,.0f} MiB"


def ms(nanoseconds):
    return f"{nanoseconds / 1e6:,.{0 if nanoseconds >= 10e6 else 1}f} ms"


# The listeners of docs/sizing.md, where 100,000 devices connect at once.
LISTENERS = {"plain": PLAIN, "certificates": "RSA 2048, client certificates"}
DEVICES = 100_000


def handshakes(workload, shown):
    """Of the server's CPU time for a full and for a resumed handshake, in milliseconds as the page shows them."""

    def figure(run):
        rows = [
            run.row("handshakes", store="rekindle", workload=workload, size=MILLION, handshake=handshake)
            for handshake in ("full", "resumed")
        ]
        return shown(*[round(median(row["server_cpu_ns"]) / 1e6, 2) for row in rows]) if None not in rows else None

    return figure


def storm(resumed_share, cores=1):
    """How long the cores work for all devices, if this share of them resumes."""
    return lambda full, resumed: f"{DEVICES * ((1 - resumed_share) * full + resumed_share * resumed) / 1000 / cores:,.0f} s"


HANDSHAKES = {
    "full": lambda full, resumed: f"{full:.2f} ms",
    "resumed": lambda full, resumed: f"{resumed:.2f} ms",
    "saved": lambda full, resumed: f"{100 * (1 - resumed / full):.0f} %",
    "none": storm(0),
    "most": storm(0.9),
    "all": storm(1),
    "none_on_8": storm(0, cores=8),
    "all_on_8": storm(1, cores=8),
}

FIGURES = {
    "session_bytes": session_bytes("rekindle"),
    "otp_session_bytes": session_bytes("gb_trees"),
    "process": of_process("rekindle", "process_bytes", size),
    "otp_process": of_process("gb_trees", "process_bytes", size),
    "wait": of_process("rekindle", "call_max_ns", ms),
    "otp_wait": of_process("gb_trees", "call_max_ns", ms),
    **{
        f"{listener}_{name}": handshakes(workload, shown)
        for listener, workload in LISTENERS.items()
        for name, shown in HANDSHAKES.items()
    },
}


def main():
    *options, results, page = sys.argv[1:]
    run, page = Run(pathlib.Path(results)), pathlib.Path(page)
    differences = []

    def fill(match):
        before, name, found, after = match.groups()
        figure = FIGURES[name](run) or found
        if figure != found:
            differences.append(f"{page.name}: {name} is {found}, and {figure} in the results")
        return before + figure + after

    text = page.read_text()
    filled = re.sub(r"(<!-- figure:(\w+) -->)(.*?)(<!-- end -->)", fill, text)
    if options == ["--check"]:
        sys.exit("\n".join(differences) or 0)
    page.write_text(filled)


main()
