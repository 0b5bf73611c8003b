"""What a run has measured: its rows, and costs and ratios made of them."""

import json
import statistics

PLAIN = "ECDSA P-256"
CERTIFICATES = "ECDSA P-256, client certificates"

# As tables and plots call the caches, and their colours.
CACHES = {
    "rekindle": ("Rekindle", "#c8401a"),
    "rekindle_compressed": ("Rekindle, certificates compressed", "#e0906f"),
    "gb_trees": ("gb_trees (OTP's default)", "#3b6ea5"),
    "ets_ordered_set": ("ets ordered_set", "#6a9a3f"),
    "ets_set": ("ets set", "#9a9a9a"),
}
OTHERS = ["gb_trees", "ets_ordered_set", "ets_set"]
OPERATIONS = ["hit", "miss", "insert", "delete"]


def median(values):
    """Of a list with a value for each round, or none."""
    return statistics.median(values) if values else None


def distinct(rows, key):
    return list(dict.fromkeys(row[key] for row in rows))


def ratios(numerators, denominators):
    """Of two caches in one round each."""
    if not numerators or not denominators:
        return None
    return [above / below for above, below in zip(numerators, denominators) if below > 0]


class Run:
    def __init__(self, folder):
        results = json.loads((folder / "results.json").read_text())
        self.about, self.failed = results["about"], results["failed"]
        self._rows = results["rows"]
        self._folder = folder

    def rows(self, part, **wanted):
        return [row for row in self._rows if row["part"] == part and all(row[key] == value for key, value in wanted.items())]

    def row(self, part, **wanted):
        found = self.rows(part, **wanted)
        return found[0] if found else None

    def values(self, key, part, **wanted):
        """A value for each round, or for each node where each has measured one."""
        values = [row[key] for row in self.rows(part, **wanted)]
        return values[0] if values and isinstance(values[0], list) else values

    def core(self, name):
        """The table of a bench of the core crate, if it ran."""
        file = self._folder / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else {"title": name, "rows": []}

    def cost(self, store, operation, size, workload=PLAIN, part="micro", processes=1):
        """Nanoseconds of CPU time in each round, without those of the loop."""
        case = {"operation": operation, "size": size, "workload": workload, "processes": processes}
        if store == "rekindle_compressed" and not self.compresses(size):
            return None
        all_in_all = self.values("cpu_ns", part, store=store, **case)
        return [a - b for a, b in zip(all_in_all, self.values("cpu_ns", part, store="loop", **case))]

    def ratio(self, other, operation, size, ours="rekindle", **case):
        """How many times as much another cache needs."""
        return median(ratios(self.cost(other, operation, size, **case), self.cost(ours, operation, size, **case)))

    def compresses(self, size):
        """Whether Rekindle had compressed the certificates in the scope that was to have them compressed."""
        case = {"part": "micro", "operation": "hit", "size": size, "workload": CERTIFICATES}
        scopes = [self.row(store=store, **case) for store in ("rekindle", "rekindle_compressed")]
        return None not in scopes and scopes[1]["bytes"] < 0.9 * scopes[0]["bytes"]
