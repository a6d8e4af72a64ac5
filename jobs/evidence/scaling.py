"""One picture of several tables: what grows with the model, and with the problems.

    python jobs/evidence/scaling.py scaling.svg "500 problems=table.json" "1,000=other.json"

Each table is a file of `rise-ray compare --seeds RUN ... --json FILE`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rise_ray.report.plots import standalone, votes_of_tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path, help="the SVG file to write")
    parser.add_argument("tables", nargs="+", metavar="NAME=FILE", help="from left to right")
    given = parser.parse_args()
    named = dict(table.split("=", 1) for table in given.tables)
    tables = {name: json.loads(Path(file).read_text()) for name, file in named.items()}
    given.picture.write_text(standalone(votes_of_tables(tables)))


if __name__ == "__main__":
    main()
