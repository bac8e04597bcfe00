"""Markov chain and diffusion samplers: privacy-blind torch, batched over chains, all randomness from one generator."""

from dpgm.samplers.diffusion import ddim, heun, sigma_schedule
from dpgm.samplers.hamiltonian import hmc, pge_steps, splitting, tune_step_size, unadjusted_hmc
from dpgm.samplers.kernel import Chain, Info, Kernel, State, anneal, chain, run, stalled
from dpgm.samplers.langevin import annealed_langevin, mala, ula

__all__ = [
    "Chain",
    "Info",
    "Kernel",
    "State",
    "anneal",
    "annealed_langevin",
    "chain",
    "ddim",
    "heun",
    "hmc",
    "mala",
    "pge_steps",
    "run",
    "sigma_schedule",
    "splitting",
    "stalled",
    "tune_step_size",
    "ula",
    "unadjusted_hmc",
]
