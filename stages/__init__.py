"""The stages of the pipeline: ``python -m stages.<name>`` in the project's root."""

import ctypes
import os
import signal
import sys

# Python is about to run a module of this package. What must hold before its imports is done here.
if sys.argv[0] == "-m":
    # Imports take seconds; Ctrl-C meanwhile leaves no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Jupyter and Colab name their own backend here, which matplotlib refuses elsewhere. The figures
    # are drawn by Agg directly and need none.
    os.environ.pop("MPLBACKEND", None)
    # A stage that DVC started ends with DVC, however that ends (PR_SET_PDEATHSIG). What a shell
    # started may outlive it, as nohup promises.
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
