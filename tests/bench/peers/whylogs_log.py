"""whylogs.log with its defaults on the first rows of a Parquet file:
`python whylogs_log.py FILE`, a number of rows a line on its input.

Answers each line with the seconds that it took.
"""

import os
import sys
import time

os.environ |= {"WHYLOGS_NO_ANALYTICS": "True"}

import pandas as pd
import whylogs


def main() -> None:
    frame = pd.read_parquet(sys.argv[1])
    for line in sys.stdin:
        some = frame.iloc[:int(line)]
        begun = time.perf_counter()
        whylogs.log(some)
        print(time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    main()
