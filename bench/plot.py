"""Plots of the benchmarks' numbers. Usage: plot.py FOLDER, which holds results.json; writes SVG files beside it."""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib import ticker

STORES = {
    "rekindle": ("Rekindle", "#c8401a"),
    "gb_trees": ("gb_trees (server default)", "#3b6ea5"),
    "default": ("default cache", "#3b6ea5"),
    "ets_ordered_set": ("ets ordered_set (client default)", "#6a9a3f"),
    "ets_set": ("ets set", "#9a9a9a"),
}
OPERATIONS = ["hit", "miss", "insert", "delete"]


def distinct(rows, key):
    return list(dict.fromkeys(row[key] for row in rows))


def pick(rows, **wanted):
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


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


def scaling(rows, core, folder):
    """The cost of each operation against the number of sessions. `core` is of the store without Erlang."""
    for workload in distinct(rows, "workload"):
        figure, panels = plt.subplots(1, 4, figsize=(16, 4.2), sharey=True)
        for axes, operation in zip(panels, OPERATIONS):
            for store in distinct(rows, "store"):
                label, colour = STORES[store]
                points = pick(rows, workload=workload, operation=operation, processes=1, store=store)
                axes.plot([p["size"] for p in points], [p["cpu_ns"] for p in points], "o-", color=colour, label=label)
            tail = 900 if "client" in workload else 0
            points = pick(core, tail=tail, operation=operation, threads=1)
            label = "Rekindle's store, without Erlang"
            axes.plot([p["sessions"] for p in points], [p["ns"] for p in points], "o:", color=STORES["rekindle"][1], label=label)
            axes.set_xscale("log")
            axes.set_yscale("log")
            finish(axes, operation, "sessions in the cache", "CPU time, ns" if operation == "hit" else "")
        panels[0].legend(fontsize=8)
        figure.suptitle(f"One operation, {workload}")
        slug = "with-client-certificates" if "client" in workload else "plain"
        save(figure, folder, f"scaling-{slug}")


def memory(rows, folder):
    """Resident bytes a session, filled and after three times as many."""
    workloads = distinct(rows, "workload")
    sizes = [size for size in distinct(rows, "size") if set(distinct(pick(rows, size=size), "workload")) == set(workloads)]
    size = max(sizes)
    rows = pick(rows, size=size)
    stores = distinct(rows, "store")
    figure, panels = plt.subplots(1, len(workloads), figsize=(5.5 * len(workloads), 4.2), squeeze=False)
    for axes, workload in zip(panels[0], workloads):
        for place, (moment, of, alpha) in enumerate(
            [("filled", "live", 0.4), ("filled", "resident", 0.6), ("churned", "live", 0.8), ("churned", "resident", 1.0)]
        ):
            for index, store in enumerate(stores):
                row = pick(rows, workload=workload, store=store)[0]
                axes.bar(index + 0.2 * place - 0.3, row[moment][of], 0.18, color=STORES[store][1], alpha=alpha)
        axes.set_xticks(range(len(stores)), [STORES[store][0].replace(" (", "\n(") for store in stores], fontsize=8)
        finish(axes, workload, "live, resident; the same after replacing all 3 times", "bytes a session")
    figure.suptitle(f"Memory, {size:,} sessions")
    save(figure, folder, "memory")


def process(rows, folder):
    """The size and the pauses of OTP's cache process."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2))
    columns = [
        ("process_bytes", 2**20, "size of the process", "MiB"),
        ("longest_gc_ns", 1e6, "longest garbage collection", "ms"),
        ("call_max_ns", 1e6, "longest reuse_session", "ms"),
    ]
    for axes, (key, unit, title, y) in zip(panels, columns):
        for store in distinct(rows, "store"):
            label, colour = STORES[store]
            points = pick(rows, store=store, phase="filling")
            axes.plot([p["size"] for p in points], [p[key] / unit for p in points], "o-", color=colour, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        finish(axes, title, "sessions in the cache", y)
    panels[0].legend(fontsize=8)
    figure.suptitle("OTP's cache process while it fills")
    save(figure, folder, "process")


def handshakes(rows, folder):
    """Latencies of handshakes with the most sessions in the cache."""
    rows = pick(rows, size=max(distinct(rows, "size")))
    marks = [("p50_ns", "p50"), ("p99_ns", "p99"), ("p999_ns", "p99.9"), ("max_ns", "max")]
    figure, panels = plt.subplots(1, 2, figsize=(14, 4.6))
    for axes, kind in zip(panels, ["resumed", "full"]):
        groups = distinct(pick(rows, handshake=kind), "workload")
        for place, store in enumerate(["default", "rekindle"]):
            label, colour = STORES[store]
            for index, workload in enumerate(groups):
                row = pick(rows, handshake=kind, workload=workload, store=store)[0]
                for step, (key, _) in enumerate(marks):
                    x = index * 10 + step * 2.2 + place
                    axes.bar(x, row[key] / 1e6, 0.95, color=colour, label=label if index == step == 0 else None)
        ticks = [(index * 10 + step * 2.2 + 0.5, name) for index in range(len(groups)) for step, (_, name) in enumerate(marks)]
        axes.set_xticks([x for x, _ in ticks], [name for _, name in ticks], fontsize=7)
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(ticker.FormatStrFormatter("%g"))
        axes.tick_params(axis="y", which="minor", labelsize=7)
        finish(axes, kind, " | ".join(groups), "ms")
        axes.xaxis.label.set_size(7)
        axes.legend(fontsize=8)
    figure.suptitle(f"Handshakes with {rows[0]['size']:,} sessions in the cache")
    save(figure, folder, "handshakes")


def busy(rows, folder):
    """Latencies of resumed handshakes while sessions are registered."""
    rows = pick(rows, handshake="busy")
    marks = [("p50_ns", "p50"), ("p99_ns", "p99"), ("p999_ns", "p99.9"), ("max_ns", "max")]
    figure, axes = plt.subplots(figsize=(9, 4.4))
    for place, store in enumerate(["default", "rekindle"]):
        label, colour = STORES[store]
        row = pick(rows, store=store)[0]
        values = [row[key] / 1e6 for key, _ in marks]
        bars = axes.bar([step + 0.4 * place - 0.2 for step in range(len(marks))], values, 0.38, color=colour, label=label)
        axes.bar_label(bars, [f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms" for value in values], fontsize=8, padding=2)
    axes.set_yscale("log")
    axes.set_xticks(range(len(marks)), [name for _, name in marks])
    axes.legend(fontsize=8, loc="upper left")
    axes.margins(y=0.25)
    finish(axes, f"Resumed handshakes with {rows[0]['size']:,} sessions, while sessions are registered", "", "ms")
    save(figure, folder, "busy")


def eviction(rows, folder):
    """Reconnects that resume, by what is dropped under pressure."""
    caches = {"rekindle": STORES["rekindle"][1], "lru": "#9a9a9a", "fifo": "#3b6ea5"}
    figure, axes = plt.subplots(figsize=(10, 5))
    for place, (cache, colour) in enumerate(caches.items()):
        bars = axes.barh([n + 0.27 * place for n in range(len(rows))], [row[cache] for row in rows], 0.25, color=colour, label=cache)
        axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=2)
    axes.set_yticks([n + 0.27 for n in range(len(rows))], [row["scenario"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.legend(["Rekindle", "LRU", "FIFO (what OTP's cache does)"], fontsize=8, loc="lower right")
    finish(axes, "Reconnects that resume", "%", "")
    save(figure, folder, "eviction")


def core_rows(folder, name):
    """Of a bench of the core crate, if it ran."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text())["rows"] if file.exists() else []


def main():
    folder = pathlib.Path(sys.argv[1])
    results = json.loads((folder / "results.json").read_text())
    scaling(results["micro"], core_rows(folder, "operations"), folder)
    memory(results["memory"], folder)
    process(results["process"], folder)
    handshakes(results["handshakes"], folder)
    busy(results["handshakes"], folder)
    if simulation := core_rows(folder, "eviction"):
        eviction(simulation, folder)


main()
