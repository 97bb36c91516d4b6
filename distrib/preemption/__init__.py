"""Requests to stop: signals (`stop_request.py`), clouds' notices, and the time left for a save.

May import modules of lower layers, such as `log` and `environment`; `training` decides what a
request leads to.
"""
