"""The functions that the matrix examples import: a product of matrices, through files."""

import tempfile
from pathlib import Path

import numpy as np


def gpu_matmul(original_matrix: np.ndarray, base_dir: Path | int, i: int | None = None) -> float:
    """Multiply the matrix in file_i by the original one, and write the product to file_{i+1}.

    Called as gpu_matmul(matrix, base_dir, i); or as gpu_matmul(matrix, i), as the template does.
    Returns the largest element of the product (of integers that wrap around).
    """
    if i is None:
        base_dir, i = Path("/some/path/to/base_dir"), base_dir
    directory = scratch(base_dir)
    directory.mkdir(parents=True, exist_ok=True)
    current = np.load(directory / f"file_{i}.npy") if i else original_matrix
    product = original_matrix @ current
    np.save(directory / f"file_{i + 1}.npy", product)
    return float(product.max())


def scratch(base_dir: Path) -> Path:
    """The examples name a directory that no machine has: it is made below the temporary one."""
    return Path(tempfile.gettempdir(), "daskbatch-examples", *Path(base_dir).parts[1:])
