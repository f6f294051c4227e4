"""Engines: one file per backend that runs a network; see :mod:`bksdm.engines.protocol`."""
