"""The five stages of the pipeline, each run as ``python -m stages.<name>`` from the project's root."""

import signal
import sys

if sys.argv[0] == "-m":  # Python is about to run a module of this package: Ctrl-C while it imports shall leave no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
