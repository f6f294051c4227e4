"""Print the folder of the C++ library's sources, for CMake's ``add_subdirectory``."""

from pathlib import Path

print(Path(__file__).resolve().parent)
