"""Plots of a run. Usage: plot.py RESULTS, a folder that holds results.json; writes SVG files beside it."""

import pathlib
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib import ticker
from measured import CACHES, CERTIFICATES, OPERATIONS, OTHERS, PLAIN, Run, distinct, median

PERCENTILES = [("p50_ns", "p50"), ("p99_ns", "p99"), ("p999_ns", "p99.9"), ("max_ns", "longest")]


def save(figure, folder, name):
    figure.tight_layout()
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def finish(axes, title, x, y):
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, which="major", alpha=0.3)


def line(axes, cache, points, **how):
    label, colour = CACHES[cache]
    points = [(x, y) for x, y in points if y is not None]
    if points:
        axes.plot(*zip(*points), how.pop("style", "o-"), color=colour, **{"label": label, **how})


def scaling(run, folder):
    """The cost of each operation against the number of sessions."""
    for workload, slug in [(PLAIN, "plain"), (CERTIFICATES, "with-client-certificates")]:
        sizes = distinct(run.rows("micro", workload=workload), "size")
        figure, panels = plt.subplots(1, 4, figsize=(16, 4.2), sharey=True)
        for axes, operation in zip(panels, OPERATIONS):
            for cache in CACHES:
                if run.rows("micro", workload=workload, store=cache):
                    line(axes, cache, [(size, median(run.cost(cache, operation, size, workload))) for size in sizes])
            certificate = 900 if workload == CERTIFICATES else 0
            core = [
                row
                for row in run.core("operations")["rows"]
                if (row["operation"], row["certificate"], row["threads"]) == (operation, certificate, 1)
            ]
            line(axes, "rekindle", [(row["sessions"], row["ns"]) for row in core], style="o:", label="Rekindle's store, without Erlang")
            axes.set_xscale("log")
            axes.set_yscale("log")
            finish(axes, operation, "sessions in the cache", "CPU time, ns" if operation == "hit" else "")
        panels[0].legend(fontsize=8)
        figure.suptitle(f"One operation, {workload}")
        save(figure, folder, f"scaling-{slug}")


def memory(run, folder):
    """Bytes per session, filled and after three times as many."""
    workloads = distinct(run.rows("memory"), "workload")
    caches = ["rekindle", *OTHERS]
    figure, panels = plt.subplots(1, len(workloads), figsize=(5.5 * len(workloads), 4.2), squeeze=False)
    for axes, workload in zip(panels[0], workloads):
        size = min(distinct(run.rows("memory", workload=workload), "size"))
        for place, (moment, kind) in enumerate((moment, kind) for moment in ("filled", "churned") for kind in ("live", "resident")):
            for index, cache in enumerate(caches):
                of = [row[moment][kind] for row in run.rows("memory", workload=workload, store=cache, size=size)]
                axes.bar(index + 0.2 * place - 0.3, median(of), 0.18, color=CACHES[cache][1], alpha=0.4 + 0.2 * place)
        axes.set_xticks(range(len(caches)), [CACHES[cache][0].replace(" (", "\n(") for cache in caches], fontsize=8)
        finish(axes, f"{workload}, {size:,} sessions", "live, resident; the same after replacing all 3 times", "bytes per session")
    save(figure, folder, "memory")


def process(run, folder):
    """The size and the pauses of OTP's cache process."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2))
    columns = [
        ("process_bytes", 2**20, "size of the process", "MiB"),
        ("longest_gc_ns", 1e6, "longest garbage collection", "ms"),
        ("call_max_ns", 1e6, "longest reuse_session", "ms"),
    ]
    for axes, (key, unit, title, y) in zip(panels, columns):
        for cache in distinct(run.rows("process"), "store"):
            line(axes, cache, [(row["size"], row[key] / unit) for row in run.rows("process", store=cache, phase="filling")])
        axes.set_xscale("log")
        axes.set_yscale("log")
        finish(axes, title, "sessions in the cache", y)
    panels[0].legend(fontsize=8)
    figure.suptitle("OTP's cache process while it fills")
    save(figure, folder, "process")


def bars(axes, groups, title):
    """Latencies: a group of bars for each percentile of each group of rows."""
    caches = distinct([row for rows in groups.values() for row in rows], "store")
    ticks = []
    for index, rows in enumerate(groups.values()):
        for step, (key, mark) in enumerate(PERCENTILES):
            left = (index * (len(PERCENTILES) + 1) + step) * (len(caches) + 1)
            ticks.append((left + (len(caches) - 1) / 2, mark))
            for row in rows:
                label, colour = CACHES[row["store"]]
                height = (max(row[key]) if key == "max_ns" else median(row[key])) / 1e6
                bar = axes.bar(left + caches.index(row["store"]), height, 0.95, color=colour, label=None if index or step else label)
                axes.bar_label(bar, fmt="%.3g", fontsize=6, padding=1)
    axes.set_yscale("log")
    axes.set_xticks(*zip(*ticks), fontsize=7)
    axes.yaxis.set_minor_formatter(ticker.FormatStrFormatter("%g"))
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.legend(fontsize=8, loc="upper left")
    axes.margins(y=0.25)
    finish(axes, title, " | ".join(groups), "ms")
    axes.xaxis.label.set_size(7)


def handshakes(run, folder):
    """Latencies of handshakes with the most sessions in the cache."""
    size = max(distinct(run.rows("handshakes"), "size"))
    figure, panels = plt.subplots(1, 2, figsize=(14, 4.6))
    for axes, kind in zip(panels, ["resumed", "full"]):
        rows = run.rows("handshakes", handshake=kind, size=size)
        bars(axes, {workload: [row for row in rows if row["workload"] == workload] for workload in distinct(rows, "workload")}, kind)
    figure.suptitle(f"Handshakes with {size:,} sessions in the cache")
    save(figure, folder, "handshakes")


def busy(run, folder):
    """Latencies of resumed handshakes while sessions are registered."""
    figure, axes = plt.subplots(figsize=(11, 4.4))
    sizes = distinct(run.rows("busy"), "size")
    bars(axes, {f"{size:,} sessions": run.rows("busy", size=size) for size in reversed(sizes)}, "Resumed handshakes while others register")
    save(figure, folder, "busy")


def eviction(run, folder):
    """Connections of devices that resume, by workload and cache. Colours compare with a cache without a bound."""
    rows = run.core("eviction")["rows"]
    caches = {
        "rekindle": "Rekindle",
        "rekindle by bytes": "Rekindle,\nmax_bytes",
        "sieve": "SIEVE",
        "fifo": "FIFO\n(OTP)",
        "lru": "LRU",
        "unbounded": "no bound",
    }
    shares = [[row[cache] / row["unbounded"] for cache in caches] for row in rows]
    figure, axes = plt.subplots(figsize=(14, 0.26 * len(rows) + 1.6))
    axes.imshow(shares, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto", alpha=0.6)
    for y, row in enumerate(rows):
        for x, cache in enumerate(caches):
            missed = x < 2 and row["target"] is not None and row[cache] < row["target"]
            axes.text(x, y, f"{row[cache]:.0f}", ha="center", va="center", fontsize=8, weight="bold" if missed else "normal")
        target = "" if row["target"] is None else f"≥ {row['target']:.0f}"
        axes.text(len(caches) - 0.3, y, target, ha="left", va="center", fontsize=8)
    axes.text(len(caches) - 0.3, -1, "target", ha="left", va="center", fontsize=9)
    axes.set_xticks(range(len(caches)), caches.values(), fontsize=9)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [f"{row['about']}   {row['workload']}" for row in rows], fontsize=8)
    axes.tick_params(length=0)
    axes.set_title("Connections of devices that resume, %. Bold: Rekindle misses its target", fontsize=11)
    # Letters as outlines would more than double the file.
    with plt.rc_context({"svg.fonttype": "none"}):
        save(figure, folder, "eviction")


def main():
    folder = pathlib.Path(sys.argv[1])
    run = Run(folder)
    for part, plot in [("micro", scaling), ("memory", memory), ("process", process), ("handshakes", handshakes), ("busy", busy)]:
        if run.rows(part):
            plot(run, folder)
    if run.core("eviction")["rows"]:
        eviction(run, folder)


main()
