"""`python -m jobs.show OUTPUT`: print the captions of an output as a table."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd


def main(output: str) -> None:
    """Print file name, caption and confidence of the first 50 captions, and the folder of the Parquet files."""
    table = pd.read_parquet(f"{output}/captions", columns=["path", "caption", "confidence"])
    table["path"] = [Path(path).name for path in table["path"]]
    with pd.option_context("display.max_colwidth", 80, "display.width", 140):
        print(table.sort_values("path").head(50).to_string(index=False, float_format="{:.3f}".format))
    print(f"\n{len(table)} captions in {output}/captions (Parquet)")


if __name__ == "__main__":
    main(sys.argv[1])
