"""Every private name of Keras that distrib needs, in one place, with the versions that were tried.

The tests beside this package fail when a Keras release changes one of them.
May import nothing of distrib but its errors.
"""
