"""Files as sources of examples: start with `formats.py`, then `source.py`.

`formats.py` chooses the source by the files' names. `record_index.py` finds out where each example
of a file is, once; `ranges.py` reads many of them in few requests.
"""
