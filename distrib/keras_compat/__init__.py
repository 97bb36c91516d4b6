"""Every private name of Keras that distrib needs, in one place, with the versions that were tried.

`tests/unit/keras_compat` fails when a Keras release changes one of them.
Imports nothing of distrib.
"""
