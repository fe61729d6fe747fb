"""What `import uadt` costs, alone and beyond torch, each in fresh processes.

python benchmarks/import_time.py [REPEATS]
"""

import statistics
import subprocess
import sys

from timing import machine

CASES = {
    "nothing": "pass",
    "import uadt": "import uadt",
    "import uadt.rewards": "import uadt.rewards",
    "import torch": "import torch",
    "import torch, then uadt.UADT": "import torch, uadt; uadt.UADT",
    "import torch, then uadt.token_entropy": "import torch, uadt; uadt.token_entropy",
}


def cpu_ms(code: str) -> float:
    """Return the CPU time of a process that runs the code."""
    program = f"import time; {code}; print(time.process_time())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return 1e3 * float(done.stdout)


def main(repeats: int) -> None:
    """Print the table."""
    print(f"**Importing** · {machine()}\n")
    print("| | CPU time of the process, median |\n|---|---|")
    for name, code in CASES.items():
        cpu_ms(code)  # bytecode, and the page cache
        print(f"| {name} | {statistics.median(cpu_ms(code) for _ in range(repeats)):.0f} ms |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
