"""The scheduler classes of diffusers that there are samplers for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bksdm.runtime.samplers.consistency import lcm, tcd
from bksdm.runtime.samplers.ddim import ddim
from bksdm.runtime.samplers.ddpm import ddpm
from bksdm.runtime.samplers.deis import deis
from bksdm.runtime.samplers.dpm import dpm_multistep
from bksdm.runtime.samplers.dpm_single import dpm_singlestep
from bksdm.runtime.samplers.euler import euler, euler_ancestral
from bksdm.runtime.samplers.heun import heun
from bksdm.runtime.samplers.kdpm2 import kdpm2, kdpm2_ancestral
from bksdm.runtime.samplers.lms import lms
from bksdm.runtime.samplers.pndm import pndm
from bksdm.runtime.samplers.table import Solver
from bksdm.runtime.samplers.unipc import unipc

Prepare = Callable[[Mapping[str, object], int], Solver]


DIFFUSERS_CLASSES: dict[str, Prepare] = {
    "PNDMScheduler": pndm,
    "DDIMScheduler": ddim,
    "DDPMScheduler": ddpm,
    "EulerDiscreteScheduler": euler,
    "EulerAncestralDiscreteScheduler": euler_ancestral,
    "HeunDiscreteScheduler": heun,
    "LMSDiscreteScheduler": lms,
    "KDPM2DiscreteScheduler": kdpm2,
    "KDPM2AncestralDiscreteScheduler": kdpm2_ancestral,
    "DPMSolverMultistepScheduler": dpm_multistep,
    "DPMSolverSinglestepScheduler": dpm_singlestep,
    "UniPCMultistepScheduler": unipc,
    "DEISMultistepScheduler": deis,
    "LCMScheduler": lcm,
    "TCDScheduler": tcd,
}
"""What a bundle's ``scheduler_config.json`` may name; everything is taken from its fields."""
