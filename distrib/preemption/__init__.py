"""Requests to stop: signals (`stop_request.py`), clouds' notices, and the time left for a save.

May import the modules below it on the ground floor, such as `log` and `environment`;
what is done about a request is decided in `training`.
"""
