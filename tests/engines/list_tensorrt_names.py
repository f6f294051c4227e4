"""Write tensorrt_names.json: the names that every admitted version of both TensorRTs has.

``python tests/engines/list_tensorrt_names.py`` downloads the wheels of their Python bindings, a
megabyte each, and imports them with empty libraries in the place of TensorRT's own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TABLE = Path(__file__).with_name("tensorrt_names.json")
WHEELS = {
    "tensorrt": (
        "tensorrt-cu13-bindings",
        ("11.0.0.114", "11.1.0.106", "11.2.1.2", "11.3.0.99", "11.4.0.106"),
    ),
    "tensorrt-rtx": (
        "tensorrt-rtx-cu13-bindings",
        ("1.4.0.76", "1.5.0.114", "1.6.1.120", "1.7.1.116"),
    ),
}
CLASSES = (
    *("Builder", "BuilderFlag", "ComputeCapability", "DataType"),
    *("DynamicShapesKernelSpecializationStrategy", "ExecutionContextAllocationStrategy"),
    *("IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory", "ILayer", "ILogger"),
    *("INetworkDefinition", "IOptimizationProfile", "IProgressMonitor", "IRuntimeCache"),
    *("IRuntimeConfig", "ITensor", "ITimingCache", "Logger", "OnnxParser", "ParserError"),
    *("Runtime", "TensorIOMode"),
)
"""Those whose names are of interest."""
DUNDER = ("__init__", "__members__", "__version__")
PRINT = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
names = {"": dir(module)}
names.update({c: dir(getattr(module, c)) for c in sys.argv[2:] if hasattr(module, c)})
print(json.dumps(names))
"""


def names_of(package: str, version: str) -> dict[str, set[str]]:
    """Return the names in a module, and in its classes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        wanted = [f"{package}=={version}", "--no-deps", "--only-binary", ":all:", "-d", place]
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", *wanted], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        (module,) = (path.parent for path in folder.glob("*/tensorrt*.so"))
        found = json.loads(_printed(folder, module.name))
    return {of: set(names) for of, names in found.items()}


def _printed(folder: Path, module: str) -> str:
    """Import a module, and give it every library and function that it is missing."""
    libraries: list[str] = []
    functions: list[str] = []
    while True:
        result = subprocess.run(
            [sys.executable, "-c", PRINT, module, *CLASSES],
            capture_output=True,
            text=True,
            cwd=folder,
            env={"LD_LIBRARY_PATH": str(folder)},
        )
        if result.returncode == 0:
            return result.stdout
        library = re.search(r"(\S+\.so\S*): cannot open shared object", result.stderr)
        function = re.search(r"undefined symbol: (\w+)", result.stderr)
        if library:
            libraries.append(library[1])
        elif function:
            functions.append(function[1])
        else:
            sys.exit(result.stderr)
        source = folder / "empty.c"
        source.write_text("".join(f"void {name}(void) {{}}\n" for name in functions))
        for name in libraries:
            command = ["gcc", "-shared", "-fPIC", str(source), "-o", str(folder / name)]
            subprocess.run(command, check=True)


def main() -> None:
    """Write the table."""
    table = {}
    for flavour, (package, versions) in WHEELS.items():
        found = [names_of(package, version) for version in versions]
        common = {
            of: sorted(set.intersection(*(names.get(of, set()) for names in found)))
            for of in ("", *CLASSES)
        }
        table[flavour] = {
            "versions": list(versions),
            "names": {
                of: " ".join(name for name in names if name in DUNDER or name[0] != "_")
                for of, names in common.items()
                if names
            },
        }
    TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
