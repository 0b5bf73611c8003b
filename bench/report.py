"""Tables of a run.

Usage: report.py RESULTS PAGE. Reads results.json and what the benches of the core crate have left in the folder RESULTS,
writes RESULTS.md there, and fills the page: `<!-- bench:NAME -->` up to `<!-- end -->` becomes the table NAME.
"""

import pathlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from measured import CACHES, CERTIFICATES, OPERATIONS, OTHERS, PLAIN, Run, distinct, median, ratios

MILLION = 1_000_000
# A ratio below this is not called faster.
FASTER = 1.05
NOTHING = "Not measured in this run.\n"


# ---- cells and tables ----


def table(head, rows):
    """The columns whose names begin with `<` are aligned to the left."""
    if not rows:
        return NOTHING
    lines = [[name.lstrip("<") for name in head], ["---" if name[0] == "<" else "---:" for name in head], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def whole(value):
    return "–" if value is None else f"{value:,.0f}"


def times(value):
    return "–" if value is None else f"×{value:.{2 if value < 10 else 1}f}"


def ms(nanoseconds):
    return "–" if nanoseconds is None else f"{nanoseconds / 1e6:.2f} ms"


def mib(size):
    return f"{size / 2**20:.2f} MiB"


def percent(part):
    return f"{100 * part:.1f} %"


def name(cache):
    return CACHES[cache][0]


# ---- tables of a run ----


def machine(run):
    failed = f"\n**Failed**, and so not measured: {'; '.join(run.failed)}.\n" if run.failed else ""
    return f"{run.about}\n{failed}"


def cases(run, operation):
    """Of the operation's table the lines: size, workload, Rekindle's state, and what is said of certificates."""
    rows = run.rows("micro", operation=operation, store="loop")
    for workload, said in [
        (PLAIN, {"rekindle": "none"}),
        (CERTIFICATES, {"rekindle": "kept uncompressed", "rekindle_compressed": "compressed"}),
    ]:
        for row in rows:
            if row["workload"] == workload:
                for ours, certificates in said.items():
                    if ours == "rekindle" or run.compresses(row["size"]):
                        yield row["size"], workload, ours, certificates


def operation_table(operation):
    def of(run):
        lines = []
        for size, workload, ours, certificates in cases(run, operation):
            cells = [whole(size), certificates, f"**{whole(median(run.cost(ours, operation, size, workload)))}**"]
            for other in OTHERS:
                cost = whole(median(run.cost(other, operation, size, workload)))
                cells.append(f"{cost} ({times(run.ratio(other, operation, size, ours, workload=workload))})")
            case = {"operation": operation, "size": size, "workload": workload}
            cells.append(whole(median(run.values("cpu_ns", "micro", store="loop", **case))))
            if operation == "insert":
                cells.append(whole(median(run.values("native_ns", "micro", store=ours, **case))))
            lines.append(cells)
        head = ["sessions", "<client certificates", name("rekindle"), *map(name, OTHERS), "loop"]
        return table(head + ["in Rekindle's threads"] * (operation == "insert"), lines)

    return of


def words(run):
    """How large a term each cache hands out."""
    lines = []
    for workload in (PLAIN, CERTIFICATES):
        rows = run.rows("micro", operation="hit", workload=workload)
        if rows:
            found = {row["store"]: whole(row["words"]) for row in rows}
            lines.append([workload, *(found[store] for store in ["rekindle", *OTHERS])])
    return table(["<listener", name("rekindle"), *map(name, OTHERS)], lines)


def two_processes(run):
    lines = []
    for cache in ["rekindle", *OTHERS, "loop"]:
        rows = {row["processes"]: row for row in run.rows("two_processes", store=cache)}
        if rows:
            size, wall = rows[1]["size"], {n: row["wall_ns"] for n, row in rows.items()}
            per_second = [f"{1e3 / median(wall[n]):.2f} million" for n in (1, 2)]
            gain = times(median(ratios(wall[1], wall[2])))
            if cache == "loop":
                lines.append(["loop", *(whole(median(rows[n]["cpu_ns"])) for n in (1, 2)), *per_second, gain])
                continue
            cost = {n: run.cost(cache, "hit", size, part="two_processes", processes=n) for n in (1, 2)}
            ratio = run.ratio(cache, "hit", size, part="two_processes", processes=2)
            lines.append([name(cache), whole(median(cost[1])), f"{whole(median(cost[2]))} ({times(ratio)})", *per_second, gain])
    head = ["<cache", "CPU, one process", "CPU, two at once", "hits per second, one process", "two at once", "gain"]
    return table(head, lines)


def memory_of(run, moment, kind, **case):
    """Live or resident bytes per session: the median of the nodes that measured it."""
    return median([row[moment][kind] for row in run.rows("memory", **case)])


MOMENTS = [(moment, kind) for moment in ("filled", "churned") for kind in ("live", "resident")]


def memory(run):
    lines = []
    for case in [dict(zip(("workload", "size"), pair)) for pair in dict.fromkeys((r["workload"], r["size"]) for r in run.rows("memory"))]:
        for cache in ["rekindle", *OTHERS]:
            rows = run.rows("memory", store=cache, **case)
            of = [memory_of(run, *place, store=cache, **case) for place in MOMENTS]
            ours = memory_of(run, "churned", "resident", store="rekindle", **case)
            ratio = times(of[-1] / ours if min(of[-1], ours) > 0 else None)
            cells = [whole(case["size"]), case["workload"], name(cache), *map(whole, of), ratio, str(len(rows))]
            lines.append(cells)
    head = ["sessions", "<listener", "<cache", "live", "resident", "live, replaced", "resident, replaced", "ratio of the last", "nodes"]
    return table(head, lines)


def bound(run):
    return table(
        ["max_bytes", "<listener", "sessions", "bytes per session", "counted", "resident, full", "resident, replaced", "of max_bytes"],
        [
            [
                mib(row["max_bytes"]),
                row["workload"],
                whole(row["sessions"]),
                whole(row["counted_bytes"] / max(1, row["sessions"])),
                *(mib(row[key]) for key in ("counted_bytes", "resident_full", "resident_churned")),
                percent(row["resident_churned"] / row["max_bytes"]),
            ]
            for row in run.rows("bound")
        ],
    )


def growing(run):
    """The core's insertions while a store grows, of plain sessions."""
    return [row for row in run.core("stalls")["rows"] if row["case"].startswith("insert, growing") and row["certificate"] == 0]


def stalls(run):
    keys = ["mean µs", "p99.99 µs", "max µs", "max of a run µs"]
    new_pages = [row for row in run.core("stalls")["rows"] if row["case"] == "first write to a new page"]
    lines = [[row["case"], whole(row["sessions"]), *(str(row[key]) for key in keys)] for row in growing(run) + new_pages]
    return table(["<case", "sessions", *keys], lines)


def large_cost(run, size):
    return run.cost("rekindle", "hit", size, part="large")


def large(run):
    sizes = distinct(run.rows("large"), "size")
    lines = []
    for size in sizes:
        bytes_each = run.row("large", store="rekindle", size=size)["bytes"] / size
        ratio = median(ratios(large_cost(run, size), large_cost(run, sizes[0])))
        lines.append([whole(size), whole(median(large_cost(run, size))), times(ratio), whole(bytes_each)])
    return table(["sessions", "hit, CPU in ns", "ratio to the first", "bytes per session"], lines)


def process(run):
    lines = []
    for size, phase in dict.fromkeys((row["size"], row["phase"]) for row in run.rows("process")):
        for row in run.rows("process", size=size, phase=phase):
            lines.append(
                [
                    whole(size) + (", full" if phase == "full" else ""),
                    name(row["store"]),
                    f"{row['process_bytes'] / 2**10:,.0f} KiB",
                    whole(row["registration_cpu_ns"]),
                    *(ms(row[key]) for key in ("longest_gc_ns", "call_p50_ns", "call_p99_ns", "call_max_ns")),
                    whole(row["calls"]),
                ]
            )
    head = [
        "sessions",
        "<cache",
        "size of the process",
        "CPU per registration, ns",
        "longest garbage collection",
        "p50",
        "p99",
        "longest",
        "calls",
    ]
    return table(head, lines)


def latencies(row, keys):
    return [ms(max(row[key]) if key == "max_ns" else median(row[key])) for key in keys]


def handshakes(run):
    lines = [
        [
            row["workload"],
            row["handshake"],
            whole(row["size"]),
            name(row["store"]),
            ms(median(row["server_cpu_ns"])),
            *latencies(row, ("p50_ns", "p99_ns", "max_ns")),
            whole(row["count"]),
        ]
        for row in run.rows("handshakes")
    ]
    return table(["<listener", "<handshake", "sessions", "<cache", "server CPU", "p50", "p99", "longest", "connections"], lines)


def busy(run):
    lines = [
        [
            name(row["store"]),
            whole(row["size"]),
            *latencies(row, ("p50_ns", "p99_ns", "p999_ns", "max_ns")),
            percent(row["as_asked"] / row["count"]),
            whole(row["count"]),
        ]
        for row in run.rows("busy")
    ]
    return table(["<cache", "sessions", "p50", "p99", "p99.9", "longest", "resumed", "connections"], lines)


def flood(run):
    lines = [
        [
            name(row["store"]),
            row["phase"],
            percent(row["resumed"]),
            *(ms(row[key]) for key in ("p50_ns", "p99_ns", "max_ns")),
            whole(row["connections"]),
        ]
        for row in run.rows("flood")
    ]
    return table(["<cache", "<flood", "resumed", "p50", "p99", "longest", "connections"], lines)


def core_table(bench):
    def of(run):
        rows = run.core(bench)["rows"]
        return table(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows]) if rows else NOTHING

    return of


# ---- targets ----


@dataclass
class Target:
    """`marks` has what is measured where, and the value that is to be reached."""

    what: str
    sense: str
    shown: Callable
    marks: list[tuple[str, Callable, float]]

    def line(self, run):
        measured = [(where, of(run), mark) for where, of, mark in self.marks]
        missed = [where for where, value, mark in measured if value is not None and not self.reaches(value, mark)]
        unknown = [where for where, value, _ in measured if value is None]
        verdict = "**no**" if missed else "yes"
        if len(unknown) == len(measured):
            verdict = "not measured"
        elif len(measured) > 1:
            verdict += f": {', '.join(missed)}" if missed else ""
            verdict += f"; not measured: {', '.join(unknown)}" if unknown else ""
        marks = " / ".join(dict.fromkeys(self.shown(mark) for _, _, mark in measured))
        return [self.what, f"{self.sense} {marks}", " / ".join(self.shown(value) for _, value, _ in measured), verdict]

    def reaches(self, value, mark):
        return value >= mark if self.sense == "≥" else value <= mark


def at_sizes(what, marks, other, operation, ours="rekindle", workload=PLAIN):
    """How many times as much another cache needs."""

    def of(size):
        return lambda run: run.ratio(other, operation, size, ours, workload=workload)

    return Target(f"{what}, against {name(other)}", "≥", times, [(whole(size), of(size), mark) for size, mark in marks.items()])


def sizes(*marks):
    return dict(zip((1_000, 100_000, MILLION), marks))


def bytes_each(size, kind):
    def of(run):
        values = [memory_of(run, moment, kind, store="rekindle", workload=PLAIN, size=size) for moment in ("filled", "churned")]
        return None if None in values else max(values)

    return of


def longest_insertion(size):
    def of(run):
        return max((1e3 * row["max µs"] for row in growing(run) if row["sessions"] == size), default=None)

    return of


def two_at_once(run):
    size = (distinct(run.rows("two_processes"), "size") or [0])[0]
    return run.ratio("gb_trees", "hit", size, part="two_processes", processes=2)


def throughput_gain(run):
    return median(ratios(*(run.values("wall_ns", "two_processes", store="rekindle", processes=n) for n in (1, 2))))


def ten_million(run):
    return median(ratios(large_cost(run, 10 * MILLION), large_cost(run, MILLION)))


def busy_ratio(run):
    return median(ratios(*(run.values("p999_ns", "busy", store="rekindle", size=size) for size in (MILLION, 1_000))))


def compressed_hit(size):
    return lambda run: median(run.cost("rekindle_compressed", "hit", size, CERTIFICATES))


def process_bytes(run):
    return max((row["process_bytes"] / 2**10 for row in run.rows("process", store="rekindle", size=MILLION)), default=None)


def nanoseconds(value):
    return "–" if value is None else f"{value:,.0f} ns"


def kib(value):
    return "–" if value is None else f"{value:,.0f} KiB"


WITH_CERTIFICATES = "with client certificates of 900 bytes"
# Certificates are compressed in scopes of these sizes only.
LARGE = (100_000, MILLION)
TARGETS = [
    at_sizes("hit", sizes(1.8, 3.2, 3.5), "gb_trees", "hit"),
    at_sizes("hit", sizes(2, 4, 4.5), "ets_ordered_set", "hit"),
    at_sizes("hit", sizes(1.4, 2.2, 2), "ets_set", "hit"),
    at_sizes(f"hit {WITH_CERTIFICATES}, kept uncompressed", sizes(1.2, 1.8, 2), "gb_trees", "hit", workload=CERTIFICATES),
    Target(
        f"hit {WITH_CERTIFICATES}, compressed, CPU",
        "≤",
        nanoseconds,
        [(whole(size), compressed_hit(size), 1_500) for size in LARGE],
    ),
    at_sizes("miss", sizes(4, 13, 18), "gb_trees", "miss"),
    at_sizes("insertion", sizes(1.5, 10, 15), "gb_trees", "insert"),
    at_sizes(f"insertion {WITH_CERTIFICATES}, kept uncompressed", {1_000: 0.8}, "gb_trees", "insert", workload=CERTIFICATES),
    at_sizes(
        f"insertion {WITH_CERTIFICATES}, compressed later",
        dict.fromkeys(LARGE, 0.8),
        "gb_trees",
        "insert",
        "rekindle_compressed",
        CERTIFICATES,
    ),
    Target("hit by two processes at once, against gb_trees (OTP's default)", "≥", times, [("1,000", two_at_once, 1.8)]),
    Target("throughput of two processes, against that of one", "≥", times, [("1,000", throughput_gain, 1.7)]),
    *(
        Target(
            f"{kind} bytes per plain session, index included",
            "≤",
            whole,
            [(whole(size), bytes_each(size, kind), mark) for size, mark in [(100_000, 112), (MILLION, 108)]],
        )
        for kind in ("live", "resident")
    ),
    Target(
        "longest insertion while the store grows, CPU",
        "≤",
        ms,
        [(whole(size), longest_insertion(size), 100_000) for size in (MILLION, 10 * MILLION)],
    ),
    Target("hit among ten million sessions in one scope, against a million", "≤", times, [("10,000,000", ten_million, 1.5)]),
    Target(
        "p99.9 of resumed handshakes while others register, a million sessions against 1,000", "≤", times, [("1,000,000", busy_ratio, 1.25)]
    ),
    Target("OTP's cache process with Rekindle", "≤", kib, [("1,000,000", process_bytes, 100)]),
]


def targets(run):
    return table(["<what", "target", "measured", "<reached"], [target.line(run) for target in TARGETS])


def slower(run):
    """Each ratio that is below FASTER."""
    found = []

    def look(what, size, other, ratio):
        if ratio is not None and ratio < FASTER:
            found.append([what, whole(size), name(other), times(ratio)])

    for operation in OPERATIONS:
        for size, workload, ours, certificates in cases(run, operation):
            what = operation if workload == PLAIN else f"{operation}, client certificates {certificates}"
            for other in OTHERS:
                look(what, size, other, run.ratio(other, operation, size, ours, workload=workload))
    for row in run.rows("two_processes", processes=2):
        if row["store"] in OTHERS:
            look(
                "hit by two processes",
                row["size"],
                row["store"],
                run.ratio(row["store"], "hit", row["size"], part="two_processes", processes=2),
            )
    for row in run.rows("handshakes", store="gb_trees"):
        ours = run.row("handshakes", store="rekindle", **{key: row[key] for key in ("workload", "handshake", "size")})
        what = f"server's CPU for a handshake, {row['handshake']}, {row['workload']}"
        look(what, row["size"], "gb_trees", median(ratios(row["server_cpu_ns"], ours["server_cpu_ns"])))
    return table(["<what", "sessions", "<against", "ratio"], found) if run.rows("micro") else NOTHING


# ---- pages ----

TABLES = {
    "machine": ("Machine", machine),
    "targets": ("Targets", targets),
    "slower": ("Where Rekindle is not faster", slower),
    "hit": ("Hit", operation_table("hit")),
    "miss": ("Miss", operation_table("miss")),
    "insert": ("Insertion", operation_table("insert")),
    "delete": ("Deletion", operation_table("delete")),
    "words": ("Words of the term that a hit returns", words),
    "two_processes": ("Hits by two processes at once", two_processes),
    "memory": ("Bytes per session", memory),
    "bound": ("What max_bytes keeps", bound),
    "stalls": ("Longest insertion while the store grows", stalls),
    "large": ("Ten million sessions", large),
    "process": ("OTP's cache process", process),
    "handshakes": ("Handshakes", handshakes),
    "busy": ("Resumed handshakes while others register", busy),
    "flood": ("Resumed handshakes while the listener is flooded", flood),
}
CORE_TABLES = {bench: core_table(bench) for bench in ("operations", "eviction", "eviction_rounds", "memory", "stalls")}


def filled(page, run):
    missing = TABLES.keys() - re.findall(r"<!-- bench:(\w+) -->", page)
    if missing:
        raise SystemExit(f"the page has no place for {', '.join(sorted(missing))}")

    def fill(match):
        return f"{match[1]}{TABLES[match[2]][1](run)}{match[3]}"

    return re.sub(r"(<!-- bench:(\w+) -->\n).*?(<!-- end -->)", fill, page, flags=re.DOTALL)


def results(run):
    tables = [(title, of(run)) for title, of in TABLES.values()]
    tables += [(run.core(bench)["title"], of(run)) for bench, of in CORE_TABLES.items() if run.core(bench)["rows"]]
    return "# Results\n" + "".join(f"\n## {title}\n\n{text}" for title, text in tables)


def main():
    folder, page = map(pathlib.Path, sys.argv[1:])
    run = Run(folder)
    (folder / "RESULTS.md").write_text(results(run))
    page.write_text(filled(page.read_text(), run))


main()
