"""Runs first in the interpreter of a spare, before its script: `site` imports it by this name.

The rank agent puts this folder in front of PYTHONPATH, which is restored here before anything else
happens. When this module returns, the interpreter goes on with the script, exactly as it was told
on its command line. So whatever goes wrong before a rank is needed must end the process.
"""

from __future__ import annotations

import sys

_LOADED = frozenset(sys.modules)  # In every interpreter; the imports below are the spare's own.

import json  # noqa: E402
import os  # noqa: E402
import site  # noqa: E402
import traceback  # noqa: E402

VARIABLE = "DISTRIB_SPARE"  # As in `rank_agent.py`.


def _stand_by() -> None:
    spare = json.loads(os.environ.pop(VARIABLE))
    if spare["pythonpath"] is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = spare["pythonpath"]
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    this, before = sys.modules.pop("sitecustomize"), frozenset(sys.modules)
    site.execsitecustomize()
    sys.modules.setdefault("sitecustomize", this)
    loaded = _LOADED | frozenset(sys.modules) - before

    from distrib.launch.spare.preload import stand_by

    stand_by(spare, loaded)


if VARIABLE in os.environ:
    try:
        _stand_by()
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
