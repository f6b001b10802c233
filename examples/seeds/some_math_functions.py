"""The functions that the matrix examples import: a product of matrices, through files."""

import tempfile
from pathlib import Path

import numpy as np


def gpu_matmul(original_matrix: np.ndarray, base_dir: Path | int, i: int | None = None) -> float:
    """Multiply the matrix in file_i by the original one, and write the product to file_{i+1}.

    Call it as gpu_matmul(matrix, base_dir, i), or as the template does, gpu_matmul(matrix, i).
    Returns the largest element of the product.
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
    """Return a directory below the temporary one: the examples name one that no machine has."""
    return Path(tempfile.gettempdir(), "daskbatch-examples", *Path(base_dir).parts[1:])
