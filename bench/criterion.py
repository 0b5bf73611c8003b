"""The numbers that criterion leaves of the bench `operations`, as operations.json and operations.md.

Usage: criterion.py CRITERION_FOLDER RESULTS_FOLDER
"""

import json
import pathlib
import sys

COLUMNS = ["operation", "tail", "threads", "sessions", "ns"]


def rows(folder):
    for file in folder.glob("*/*/*/new/estimates.json"):
        operation, case, sessions = file.relative_to(folder).parts[:3]
        tail, threads = case.split("_")
        nanoseconds = json.loads(file.read_text())["median"]["point_estimate"]
        yield dict(zip(COLUMNS, [operation, int(tail), int(threads), int(sessions), round(nanoseconds)]))


def main():
    criterion, results = map(pathlib.Path, sys.argv[1:])
    table = sorted(rows(criterion), key=lambda row: [row[column] for column in COLUMNS])
    (results / "operations.json").write_text(json.dumps({"rows": table}, indent=1) + "\n")
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([str(row[column]) for column in COLUMNS] for row in table)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    (results / "operations.md").write_text(f"## Operations of the store, without Erlang\n\n{text}")


main()
