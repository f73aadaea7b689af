"""`nightcap run` as a module: `ray job submit --working-dir . -- python -m jobs.caption SOURCE... --output URI`."""

from __future__ import annotations

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
