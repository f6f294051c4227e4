"""The C++ library's sources, for builds that have the Python package installed."""
