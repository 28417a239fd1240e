"""`python -m mindpangu` is the console script `mindpangu`."""

import sys

from mindpangu.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
