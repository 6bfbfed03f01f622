"""The stages of the pipeline: ``python -m stages.<name>`` in the project's root."""

import ctypes
import os
import signal
import sys

if (
    sys.argv[0] == "-m"
):  # Python is about to run a module of this package. Here, because its imports take seconds:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while it imports leaves no traceback
    if (
        sys.platform == "linux" and "DVC_STAGE" in os.environ
    ):  # a stage that DVC started ends with DVC, however that ends;
        ctypes.CDLL(None).prctl(
            1, signal.SIGTERM
        )  # PR_SET_PDEATHSIG. What a shell started may outlive it, as nohup promises
