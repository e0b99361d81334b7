"""Whole losses: a method is one composition of terms.

Each recipe takes keyword hyper-parameters with the defaults of SDAR's paper
and code (arXiv 2605.15155), or its own paper's, and returns a `LossTerm`. `weight` and `kl_weight`
are a constant, `(start, end, steps)` or a schedule; a term whose weight is the
constant 0 is left out, and with it the forward passes it would need. `**policy`
are the arguments of `grpo`.

Methods that differ from GRPO outside the loss share it: GiGPO in the advantage
(`rewards.credit.gigpo`), Skill-GRPO in the prompt.
"""

from jaxagent import types
from jaxagent.losses import (
  base,
  distillation,
  on_policy_distillation,
  policy_gradient,
)


def grpo(
  *,
  clip_low: base.Scalar = 0.2,
  clip_high: base.Scalar = 0.2,
  dual_clip: base.Scalar | None = 3.0,
  kl_weight: base.Weight = 0.01,
  entropy_weight: base.Weight = 0.0,
) -> types.LossTerm:
  """GRPO: clipped policy gradient, KL to the reference, entropy bonus."""
  return base.add(
    **_policy(
      clip_low=clip_low,
      clip_high=clip_high,
      dual_clip=dual_clip,
      kl_weight=kl_weight,
      entropy_weight=entropy_weight,
    )
  )


def sft() -> types.LossTerm:
  """Imitation of the tokens in the mask."""
  return base.add(sft=policy_gradient.sft())


def sdar(
  *,
  weight: base.Weight = 0.01,
  beta: base.Scalar = 5.0,
  gate: str = 'sigmoid_gap',
  divergence: str = 'reverse_kl',
  keep_empty_skill: bool = False,
  **policy,
) -> types.LossTerm:
  """SDAR: GRPO plus gated self-distillation (arXiv 2605.15155).

  Args:
    weight: lambda, of the distillation against GRPO.
    beta: sharpness of the gate; at 0 it is 1/2 everywhere.
    gate: 'sigmoid_gap', 'sigmoid_entropy', 'soft_or', or the negative control
      'undetached', which has a gradient through the gate.
    divergence: 'reverse_kl', 'forward_kl' or 'jsd'.
    keep_empty_skill: distil also the rows that were shown no skill.
    **policy: arguments of `grpo`.

  Returns:
    The loss.
  """
  distill = _gated(gate, beta, divergence, keep_empty_skill)
  return base.add(**_policy(**policy), **_weighted(sdar=(distill, weight)))


def opsd_paper(*, weight: base.Weight = 0.01) -> types.LossTerm:
  """OPSD as printed in SDAR's Algorithm 3: k1 to the reference, no skill."""
  return base.add(opsd=base.scale(distillation.opsd_paper(), weight))


def grpo_opsd_paper(*, weight: base.Weight = 0.01, **policy) -> types.LossTerm:
  """GRPO plus OPSD as printed in SDAR's Algorithm 5."""
  opsd = distillation.opsd_paper()
  return base.add(**_policy(**policy), **_weighted(opsd=(opsd, weight)))


def opsd_code(
  *,
  weight: base.Weight = 0.01,
  beta: base.Scalar = 5.0,
  kl_weight: base.Weight = 0.01,
  keep_empty_skill: bool = False,
) -> types.LossTerm:
  """OPSD as in SDAR's code: its loss without the policy gradient."""
  distill = _gated('sigmoid_gap', beta, 'reverse_kl', keep_empty_skill)
  return base.add(opsd=base.scale(distill, weight), **_kl(kl_weight))


def grpo_opsd_code(
  *,
  weight: base.Weight = 0.01,
  keep_empty_skill: bool = False,
  **policy,
) -> types.LossTerm:
  """GRPO plus OPSD as in SDAR's code: SDAR with beta = 0, a gate of 1/2."""
  return sdar(
    weight=weight, beta=0.0, keep_empty_skill=keep_empty_skill, **policy
  )


def opsd_pg(
  *,
  weight: base.Weight = 0.01,
  kl_weight: base.Weight = 0.01,
  keep_empty_skill: bool = False,
) -> types.LossTerm:
  """OPSD as the policy gradient of reverse KL to the teacher."""
  opsd = distillation.opsd_policy_gradient(keep_empty_skill=keep_empty_skill)
  return base.add(opsd=base.scale(opsd, weight), **_kl(kl_weight))


def grpo_opsd_pg(
  *,
  weight: base.Weight = 0.01,
  keep_empty_skill: bool = False,
  **policy,
) -> types.LossTerm:
  """GRPO plus the policy gradient of reverse KL to the teacher."""
  opsd = distillation.opsd_policy_gradient(keep_empty_skill=keep_empty_skill)
  return base.add(**_policy(**policy), **_weighted(opsd=(opsd, weight)))


def opsd_full(
  *,
  weight: base.Weight = 1.0,
  divergence: str = 'jsd',
  kl_weight: base.Weight = 0.0,
  keep_empty_skill: bool = False,
) -> types.LossTerm:
  """OPSD over the whole vocabulary (arXiv 2601.18734).

  Its teacher is the fixed initial policy with the skill in its prompt: run the
  teacher pass with the reference's weights.
  """
  opsd = distillation.self_distillation(
    divergence=divergence, keep_empty_skill=keep_empty_skill
  )
  return base.add(opsd=base.scale(opsd, weight), **_kl(kl_weight))


def skill_sd(
  *,
  weight: base.Weight = 0.001,
  keep_empty_skill: bool = False,
  **policy,
) -> types.LossTerm:
  """Skill-SD: GRPO plus importance-weighted k3 to the teacher."""
  distill = distillation.skill_sd(keep_empty_skill=keep_empty_skill)
  return base.add(**_policy(**policy), **_weighted(skill_sd=(distill, weight)))


def rlsd(
  *,
  advantage_clip: base.Scalar = 0.2,
  mix: base.Weight = (0.5, 0.0, 100),
  keep_empty_skill: bool = False,
  **policy,
) -> types.LossTerm:
  """RLSD: GRPO on advantages whose size the teacher sets (arXiv 2604.03128)."""
  advantages = distillation.rlsd_advantages(
    clip=advantage_clip, mix=mix, keep_empty_skill=keep_empty_skill
  )
  return base.with_advantages(grpo(**policy), advantages)


def opd(
  *,
  advantage_clip: base.Scalar | None = None,
  importance: bool = False,
  keep_empty_skill: bool = True,
) -> types.LossTerm:
  """On-policy distillation by policy gradient (arXiv 2605.06387, Eq. 2)."""
  term = on_policy_distillation.opd(
    advantage_clip=advantage_clip,
    importance=importance,
    keep_empty_skill=keep_empty_skill,
  )
  return base.add(opd=term)


def exopd(
  *,
  extrapolation: base.Scalar = 1.25,
  advantage_clip: base.Scalar | None = None,
  importance: bool = False,
  keep_empty_skill: bool = True,
) -> types.LossTerm:
  """On-policy distillation beyond the teacher (arXiv 2602.12125)."""
  term = on_policy_distillation.exopd(
    extrapolation=extrapolation,
    advantage_clip=advantage_clip,
    importance=importance,
    keep_empty_skill=keep_empty_skill,
  )
  return base.add(exopd=term)


def gkd(
  *,
  beta: base.Scalar = 0.5,
  top_k: int = 32,
  fkl_scale: str = 'inv_k',
  renorm: bool = False,
  keep_empty_skill: bool = True,
) -> types.LossTerm:
  """A divergence at every token of the policy's own rows (arXiv 2306.13649).

  `beta=1` is KL(teacher || policy), which is AOPD with tau=1, `beta=0`
  KL(policy || teacher).
  """
  term = on_policy_distillation.jsd_top_k(
    beta=beta,
    top_k=top_k,
    fkl_scale=fkl_scale,
    renorm=renorm,
    keep_empty_skill=keep_empty_skill,
  )
  return base.add(gkd=term)


def aopd(
  *,
  tau: base.Scalar = 0.0,
  location: str = 'negative',
  beta: base.Scalar = 1.0,
  top_k: int = 32,
  fkl_scale: str = 'inv_k',
  renorm: bool = False,
  advantage_clip: base.Scalar | None = None,
  importance: bool = False,
  keep_empty_skill: bool = True,
) -> types.LossTerm:
  """AOPD: imitation where policy gradient would punish (arXiv 2605.06387).

  Args:
    tau: see `on_policy_distillation.imitation_gate`.
    location: see `on_policy_distillation.imitation_gate`.
    beta: of the imitation, see `on_policy_distillation.jsd_top_k`; the
      paper's forward KL is 1.
    top_k: see `on_policy_distillation.forward_kl_top_k`.
    fkl_scale: see `on_policy_distillation.forward_kl_top_k`.
    renorm: see `on_policy_distillation.forward_kl_top_k`.
    advantage_clip: see `on_policy_distillation.opd`.
    importance: see `on_policy_distillation.opd`.
    keep_empty_skill: False where the teacher is the policy with a skill in its
      prompt, an extension that is ours.

  Returns:
    The loss.
  """
  imitation = on_policy_distillation.jsd_top_k(
    beta=beta,
    top_k=top_k,
    fkl_scale=fkl_scale,
    renorm=renorm,
    keep_empty_skill=keep_empty_skill,
  )
  policy = on_policy_distillation.opd(
    advantage_clip=advantage_clip,
    importance=importance,
    keep_empty_skill=keep_empty_skill,
  )
  by = on_policy_distillation.imitation_gate(tau=tau, location=location)
  return base.add(aopd=base.choose(by, imitation, policy))


def _policy(*, kl_weight=0.01, entropy_weight=0.0, **clips):
  return {
    'policy': policy_gradient.grpo(**clips),
    **_kl(kl_weight),
    **_weighted(entropy=(policy_gradient.entropy_bonus(), entropy_weight)),
  }


def _kl(weight):
  return _weighted(kl=(policy_gradient.kl_to_reference(), weight))


def _weighted(**terms):
  return {
    name: base.scale(term, weight)
    for name, (term, weight) in terms.items()
    if callable(weight) or weight != 0
  }


def _gated(gate, beta, divergence, keep_empty_skill):
  if gate == 'undetached' and divergence == 'reverse_kl':
    return distillation.undetached_gap(
      beta=beta, keep_empty_skill=keep_empty_skill
    )
  if gate not in distillation.GATES:
    raise ValueError(
      f'Got gate={gate!r} with divergence={divergence!r}; choose a gate of'
      f" {sorted(distillation.GATES)}, or 'undetached' with 'reverse_kl'."
    )
  term = distillation.self_distillation(
    divergence=divergence, keep_empty_skill=keep_empty_skill
  )
  return base.gate(term, distillation.GATES[gate](beta=beta))
