"""Every accepted scheduler in the settings that are proved, and the formula that each must equal.

Two are there where torchsde is installed, without which diffusers cannot make them.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from peers import as_computed, dpm_solvers, solvers
from peers.schedulers import Case, Paper


def dpm(**config: Any) -> dict[str, Any]:
    return {"solver_order": 2, **config}


def noise_dpm(**config: Any) -> dict[str, Any]:
    return dpm(algorithm_type="dpmsolver", final_sigmas_type="sigma_min", **config)


def deis_papers(order: int) -> tuple[Paper, ...]:
    why = "polynomials in log ρ, order lowered at the end"
    return tuple(Paper(formula, why, {"order": order}) for formula in (solvers.deis_rho, solvers.deis_t))


BH1 = {"final_sigmas_type": "sigma_min", "solver_type": "bh1"}
UNCLIPPED = {"clip_sample": False}
EPSILON = ("epsilon",)
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
EDM: dict[str, Any] = {
    "kinds": ("epsilon", "v_prediction"),
    "log_sigma": (0.002, 80.0),
    "data": 0.5,
    "linear": True,
    "float32": True,
}
COSINE: dict[str, Any] = {**EDM, "log_sigma": (0.3, 500.0), "data": 1.0, "brownian": True}
SVD = {"timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}
CASES = [
    Case("DDIMScheduler", solvers.ddim, 1, UNCLIPPED),
    Case("DDIMScheduler", solvers.ddim, 0, UNCLIPPED, {"eta": 0.7}, {"eta": 0.7}),
    Case("DDIMScheduler", solvers.ddim, 1, {**UNCLIPPED, "set_alpha_to_one": False}, last="least"),
    Case("DDPMScheduler", solvers.ddpm, 0, UNCLIPPED),
    Case("DDPMScheduler", solvers.ddpm, 0, {**UNCLIPPED, "variance_type": "fixed_large"}, {"large": True}),
    Case("PNDMScheduler", solvers.plms, 1, {"skip_prk_steps": True}, last="least", kinds=EPSILON),
    Case(
        "PNDMScheduler",
        solvers.plms_uneven,
        2,
        {"skip_prk_steps": True},
        install={"uneven_coefficients": True},
        last="least",
        kinds=("epsilon", "v_prediction"),
    ),
    Case(  # the last step goes to ᾱ = 1, one time below 0
        "PNDMScheduler",
        solvers.plms_uneven,
        2,
        {"skip_prk_steps": True, "set_alpha_to_one": True},
        install={"uneven_coefficients": True},
        kinds=EPSILON,
    ),
    Case(
        "DEISMultistepScheduler", as_computed.deis_log_rho, 2, dpm(), last="least", float32=True, papers=deis_papers(2)
    ),
    Case(
        "DEISMultistepScheduler",
        as_computed.deis_log_rho,
        3,
        {"solver_order": 3},
        {"order": 3},
        last="least",
        float32=True,
        papers=deis_papers(3),
    ),
    Case(
        "DPMSolverMultistepScheduler",
        dpm_solvers.dpm_multistep,
        1,
        {"solver_order": 1},
        {"order": 1},
        float32=True,
    ),
    Case(
        "DPMSolverMultistepScheduler",
        dpm_solvers.dpm_multistep,
        2,
        dpm(),
        float32=True,
        papers=(Paper(dpm_solvers.dpm_multistep, "the authors' log α is linear between integers", {}, "log_alpha"),),
    ),
    Case(
        "DPMSolverMultistepScheduler",
        dpm_solvers.dpm_multistep_authors_third,
        2,
        {"solver_order": 3},
        float32=True,
        papers=(Paper(dpm_solvers.dpm_multistep, "its last term is halved", {"order": 3}),),
    ),
    Case("DPMSolverMultistepScheduler", dpm_solvers.dpm_multistep, 2, dpm(use_karras_sigmas=True), float32=True),
    Case(
        "DPMSolverMultistepScheduler",
        dpm_solvers.dpm_multistep,
        2,
        noise_dpm(),
        {"form": "noise"},
        float32=True,
        last="least",
    ),
    Case(
        "DPMSolverMultistepScheduler",
        dpm_solvers.sde_dpm_multistep,
        0,
        dpm(algorithm_type="sde-dpmsolver++"),
        float32=True,
    ),
    Case(
        "DPMSolverMultistepScheduler",
        dpm_solvers.dpm_multistep,
        2,
        FLOW,
        float32=True,
        flow=True,
        kinds=("flow_prediction",),
    ),
    Case("DPMSolverSinglestepScheduler", dpm_solvers.dpm_singlestep, 2, dpm()),
    Case("DPMSolverSinglestepScheduler", dpm_solvers.dpm_singlestep, 2, noise_dpm(), {"form": "noise"}, last="least"),
    Case(
        "DPMSolverSinglestepScheduler",
        as_computed.dpm_singlestep_as_computed,
        3,
        {"solver_order": 3},
        papers=(Paper(dpm_solvers.dpm_singlestep, "h/2 in its second call, not φ₂"),),
    ),
    Case(
        "DPMSolverSinglestepScheduler",
        as_computed.dpm_singlestep_as_computed,
        3,
        {"solver_order": 3, "final_sigmas_type": "sigma_min", "lower_order_final": True},
        last="least",
        papers=(Paper(dpm_solvers.dpm_singlestep, "h/2 in its second call, not φ₂"),),
    ),
    Case("DPMSolverSinglestepScheduler", dpm_solvers.dpm_singlestep, 2, FLOW, flow=True, kinds=("flow_prediction",)),
    Case(
        "EulerAncestralDiscreteScheduler",
        solvers.ancestral,
        linear=True,
        kinds=("epsilon", "v_prediction"),
        float32=True,
    ),
    Case(
        "EulerDiscreteScheduler",
        solvers.euler,
        1,
        linear=True,
        float32=True,
        papers=(Paper(solvers.euler, "k-diffusion's log σ is linear between integers", {}, "log_ratio"),),
    ),
    Case("EulerDiscreteScheduler", solvers.euler, 1, {"use_karras_sigmas": True}, linear=True, float32=True),
    Case("FlowMatchEulerDiscreteScheduler", solvers.flow_euler, 1, {"shift": 3.0}, flow=True, kinds=("flow",)),
    Case(
        "FlowMatchEulerDiscreteScheduler",
        solvers.flow_euler,
        1,
        {"use_dynamic_shifting": True},
        flow=True,
        kinds=("flow",),
    ),
    Case("FlowMatchHeunDiscreteScheduler", solvers.flow_heun, 2, {"shift": 3.0}, flow=True, kinds=("flow",)),
    Case("HeunDiscreteScheduler", solvers.heun, 2, linear=True),
    Case("LCMScheduler", solvers.lcm, 0, UNCLIPPED, float32=True),
    Case("LMSDiscreteScheduler", solvers.lms, 4, linear=True),
    Case("TCDScheduler", solvers.tcd, 0, UNCLIPPED),
    Case("UniPCMultistepScheduler", dpm_solvers.unipc, 1, {"solver_order": 1}, {"order": 1}),
    Case("UniPCMultistepScheduler", dpm_solvers.unipc, 2, dpm()),
    Case("UniPCMultistepScheduler", dpm_solvers.unipc, 3, {"solver_order": 3}, {"order": 3}),
    Case("UniPCMultistepScheduler", dpm_solvers.unipc, 2, dpm(**BH1), {"kind": "bh1"}, last="least"),
    Case(
        "UniPCMultistepScheduler",
        dpm_solvers.unipc,
        3,
        {"solver_order": 3, **BH1, "predict_x0": False},
        {"order": 3, "kind": "bh1", "form": "noise"},
        last="least",
    ),
    Case(
        "UniPCMultistepScheduler",
        dpm_solvers.unipc,
        2,
        dpm(final_sigmas_type="sigma_min", predict_x0=False),
        {"form": "noise"},
        last="least",
    ),
    Case("UniPCMultistepScheduler", dpm_solvers.unipc, 2, FLOW, flow=True, kinds=("flow_prediction",)),
    Case("CogVideoXDDIMScheduler", solvers.ddim, 1),
    Case(
        "CogVideoXDDIMScheduler",
        solvers.ddim,
        1,
        {"snr_shift_scale": 1.0},
        kinds=("v_prediction",),
    ),
    Case("FlowMatchLCMScheduler", solvers.flow_lcm, 0, {"shift": 3.0}, flow=True, kinds=("flow",), float32=True),
    Case(
        "FlowMatchEulerDiscreteScheduler",
        solvers.flow_euler,
        1,
        {"invert_sigmas": True},
        flow=True,
        kinds=("inverted",),
    ),
    Case(
        "EulerDiscreteScheduler",
        solvers.euler,
        1,
        SVD,
        linear=True,
        float32=True,
        kinds=("v_prediction",),
        log_sigma=(0.002, 700.0),
    ),
    Case("EDMEulerScheduler", solvers.euler, 1, **EDM),
    Case("EDMEulerScheduler", solvers.euler, 1, {"final_sigmas_type": "sigma_min"}, last="least", **EDM),
    Case(
        "EDMEulerScheduler",
        solvers.euler,
        1,
        {"sigma_max": 120.0, "sigma_data": 1.0, "sigma_schedule": "exponential"},
        **{**EDM, "log_sigma": (0.002, 120.0), "data": 1.0},
    ),
    Case("EDMDPMSolverMultistepScheduler", dpm_solvers.dpm_multistep, 1, {"solver_order": 1}, {"order": 1}, **EDM),
    Case("EDMDPMSolverMultistepScheduler", dpm_solvers.dpm_multistep, 2, dpm(), **EDM),
    Case("EDMDPMSolverMultistepScheduler", dpm_solvers.dpm_multistep_authors_third, 2, {"solver_order": 3}, **EDM),
    Case(
        "EDMDPMSolverMultistepScheduler",
        dpm_solvers.dpm_multistep,
        2,
        dpm(final_sigmas_type="sigma_min"),
        last="least",
        **EDM,
    ),
    Case(
        "EDMDPMSolverMultistepScheduler",
        dpm_solvers.sde_dpm_multistep,
        0,
        dpm(algorithm_type="sde-dpmsolver++"),
        **EDM,
    ),
    Case("KDPM2DiscreteScheduler", solvers.kdpm2, 2, linear=True, kinds=("epsilon", "v_prediction")),
    Case("KDPM2AncestralDiscreteScheduler", solvers.kdpm2_ancestral, linear=True, kinds=("epsilon", "v_prediction")),
    Case("CogVideoXDPMScheduler", dpm_solvers.sde_dpm_multistep, options={"idle_draws": True}),
    Case(
        "CogVideoXDPMScheduler",
        dpm_solvers.sde_dpm_multistep,
        0,
        {"set_alpha_to_one": False, "snr_shift_scale": 1.0},
        {"idle_draws": True},
        last="least",
        kinds=("v_prediction",),
    ),
    Case("SCMScheduler", solvers.consistency, flow=True, kinds=("trigflow",), float32=True),
    Case("DDPMWuerstchenScheduler", solvers.ddpm_to_end, kinds=("cosine",), float32=True),
    Case("DDPMWuerstchenScheduler", solvers.ddpm_to_end, 0, {"scaler": 2.0}, kinds=("cosine",), float32=True),
    Case("DDPMWuerstchenScheduler", solvers.ddpm_to_end, 0, {"scaler": 0.8}, kinds=("cosine",), float32=True),
    Case("SASolverScheduler", dpm_solvers.sa_solver, last="least"),
    Case(
        "SASolverScheduler",
        dpm_solvers.sa_solver,
        0,
        {"predictor_order": 3, "corrector_order": 4},
        {"predictor": 3, "corrector": 4},
        last="least",
    ),
    Case(
        "SASolverScheduler",
        dpm_solvers.sa_solver,
        0,
        {"algorithm_type": "noise_prediction"},
        {"form": "noise"},
        last="least",
    ),
]
if importlib.util.find_spec("torchsde") is not None:
    CASES += [
        Case("CosineDPMSolverMultistepScheduler", dpm_solvers.sde_dpm_multistep, 0, dpm(), **COSINE),
        Case(
            "CosineDPMSolverMultistepScheduler",
            dpm_solvers.sde_dpm_multistep,
            0,
            {"solver_order": 1},
            {"order": 1},
            **COSINE,
        ),
        Case(
            "DPMSolverSDEScheduler",
            dpm_solvers.sde_dpm_singlestep,
            0,
            {"noise_sampler_seed": 7},
            linear=True,
            float32=True,
            kinds=("epsilon", "v_prediction"),
            brownian=True,
        ),
    ]
