"""Every conversion factor, derived once from CODATA (scipy.constants).

Inside mlpot: energy eV, length Å, mass amu, time fs. A border converts with a factor
from here and nothing else. ``X_TO_Y`` multiplies a number in X to give a number in Y.
"""

from scipy import constants as _c

_EV = _c.physical_constants["electron volt"][0]  # J
_HARTREE = _c.physical_constants["Hartree energy"][0]  # J
_BOHR = _c.physical_constants["Bohr radius"][0]  # m

HARTREE_TO_EV = _HARTREE / _EV
BOHR_TO_ANGSTROM = _BOHR / _c.angstrom
KCAL_PER_MOL_TO_EV = _c.calorie * 1e3 / (_c.N_A * _EV)
KJ_PER_MOL_TO_EV = 1e3 / (_c.N_A * _EV)
EV_TO_KJ_PER_MOL = 1.0 / KJ_PER_MOL_TO_EV
NM_TO_ANGSTROM = 10.0
ANGSTROM_TO_NM = 0.1

#: e² / (4 pi epsilon_0), eV Å
COULOMB = HARTREE_TO_EV * BOHR_TO_ANGSTROM

#: Boltzmann constant, eV/K
BOLTZMANN = _c.k / _EV

#: (eV/Å) / amu expressed in Å/fs²: acceleration = ACCELERATION * force / mass
ACCELERATION = _EV / _c.angstrom / _c.atomic_mass / (_c.angstrom / _c.femto**2)
