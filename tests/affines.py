"""Affines at random."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from scipy.spatial.transform import Rotation

EXAMPLES = settings(max_examples=60, deadline=None)


@st.composite
def affines(draw: DrawFn) -> np.ndarray:
    """Rotated, flipped, permuted, sheared, anisotropic, anywhere within 100 mm."""
    angles = [draw(st.floats(-180, 180)) for _ in range(3)]
    sizes = [draw(st.floats(0.05, 8)) * draw(st.sampled_from([-1, 1])) for _ in range(3)]
    shear = np.array([[1, draw(st.floats(-0.5, 0.5)), 0], [0, 1, 0], [0, 0, 1]])
    linear = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(sizes) @ shear
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = [draw(st.floats(-100, 100)) for _ in range(3)]
    return affine
