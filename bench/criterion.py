"""The numbers that criterion leaves of the bench `operations`, as operations.json.

Usage: criterion.py CRITERION_FOLDER RESULTS_FOLDER
"""

import json
import pathlib
import sys

COLUMNS = ["operation", "certificate", "threads", "sessions", "ns"]


def rows(folder):
    for file in folder.glob("*/*/*/new/estimates.json"):
        operation, case, sessions = file.relative_to(folder).parts[:3]
        certificate, threads = case.split("_")
        nanoseconds = json.loads(file.read_text())["median"]["point_estimate"]
        yield dict(zip(COLUMNS, [operation, int(certificate), int(threads), int(sessions), round(nanoseconds)]))


def main():
    criterion, results = map(pathlib.Path, sys.argv[1:])
    table = sorted(rows(criterion), key=lambda row: [row[column] for column in COLUMNS])
    text = json.dumps({"title": "Operations of the store, without Erlang", "rows": table}, indent=1)
    (results / "operations.json").write_text(text + "\n")


main()
