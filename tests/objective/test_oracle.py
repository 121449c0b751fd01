import numpy as np
import pytest

from tests.objective import cases, oracle


@pytest.mark.parametrize('name', cases.OBJECTIVES)
@pytest.mark.parametrize('shape', [(6, 4), (4, 6)])
def test_the_oracles_gradients_are_those_of_finite_differences(name, shape):
  views = np.float64(cases.views(*shape, scale=0.7))
  for term in range(3):
    # Two groups of rows, so that the variance's differ.
    _, *gradients = oracle.terms(*views, cases.OBJECTIVES[name], num_groups=2)[term]
    for index in np.ndindex(views.shape):
      values = []
      for sign in (1, -1):
        moved = views.copy()
        moved[index] += sign * 1e-6
        values.append(oracle.terms(*moved, cases.OBJECTIVES[name], num_groups=2)[term][0])
      assert (values[0] - values[1]) / 2e-6 == pytest.approx(gradients[index[0]][index[1:]], rel=1e-5, abs=1e-7)
