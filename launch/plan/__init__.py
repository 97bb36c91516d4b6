"""`distrib plan`: how often to save, and what failures cost, by formula and by simulation.

May import no other folder of `launch`.
"""
