"""Make the page of ``dvc plots show`` and ``dvc plots diff`` work offline.

Run: python -m tools.offline_plots

DVC's own page loads Vega from a server. This writes a template with the JavaScript of the installed
package vl-convert-python and tells DVC, in the configuration of this clone alone, to use it from
now on.
"""

import subprocess
import sys
from pathlib import Path

from dvc_render.html import PAGE_HTML

from stages.core.errors import InputError
from stages.core.processes import run_cli

TEMPLATE = Path(".dvc/tmp/plots_page.html")  # neither in git nor in DVC


def main() -> None:
    """Write the template and configure DVC."""
    try:
        import vl_convert
    except ImportError:
        raise InputError(
            "vl-convert-python: expected the package, got none: pip install -r requirements-dev.txt"
        ) from None
    # In braces, so that no name of the bundle is one of the page.
    script = (
        "<script>{" + vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;") + "}</script>"
    )
    TEMPLATE.parent.mkdir(parents=True, exist_ok=True)
    page = PAGE_HTML.replace("<head>", '<head>\n    <meta charset="utf-8">').replace(
        "{scripts}", script
    )
    TEMPLATE.write_text(page, encoding="utf-8")
    setting = ["config", "--local", "plots.html_template", TEMPLATE.relative_to(".dvc").as_posix()]
    subprocess.run([sys.executable, "-m", "dvc", *setting], check=True)  # noqa: S603
    print(f"{TEMPLATE}: from now on `dvc plots show` and `dvc plots diff` need no internet here")


if __name__ == "__main__":
    run_cli(main)
