"""The leaves of the two surveys, as data: the command that runs each, the test that does, and what is missing.

A: Xu et al. 2024 (arXiv 2402.13116), figures 1 and 3. B: Yang et al. 2024 (arXiv 2407.01885), figure 1. The leaves of
skills and verticals are those of `kd.skills.grid`, and are not repeated here.
"""

from kd.pages.elicitation import ELICITATION
from kd.pages.leaf import Leaf

METHODS = "tests/methods/test_files.py::test_every_method_runs_on_the_tiny_pair"
OBJECTIVES = "tests/composition/test_composition.py::test_every_objective_is_a_run"
DIVERGENCE = "tests/objectives/test_divergence.py"
FEATURES = "tests/objectives/test_features.py"
LABELING = "tests/augmentation/test_labeling.py"
FILTERS = "tests/augmentation/test_filters.py"
SCORED = "tests/augmentation/test_scored_filters.py"
LABELS = "tests/augmentation/test_labels.py"
EARLIER = "encoders with a classifier's head, which the survey names as earlier work"

PARTS: dict[str, tuple[Leaf, ...]] = {
    **ELICITATION,
    "A · data selection": (
        Leaf(
            "Duplicates, exact and near",
            "augmentation=[sampling,exact_duplicates,near_duplicates]",
            f"{FILTERS}::test_what_stays",
        ),
        Leaf("Length and language", "augmentation=[sampling,length,language]", f"{FILTERS}::test_what_stays"),
        Leaf("Refusals (WizardLM's elimination)", "augmentation=[sampling,refusals]", f"{FILTERS}::test_what_stays"),
        Leaf(
            "Responses that a verifier accepts (RFT)",
            "augmentation=[sampling,verified]",
            "tests/augmentation/test_verification.py::test_what_stays",
        ),
        Leaf(
            "Contamination by the evaluation", "augmentation=[sampling,decontaminated]", f"{FILTERS}::test_what_stays"
        ),
        Leaf("Novelty by ROUGE-L (Self-Instruct's pool)", "augmentation=novel", f"{FILTERS}::test_what_stays"),
        Leaf(
            "Difference sampling and perplexity ratio (MiniPLM)",
            "augmentation=difference_sampling",
            f"{SCORED}::test_difference_sampling_keeps_what_the_teacher_finds_likeliest_against_the_student",
            "selection of plain text (`corpus`)",
        ),
        Leaf(
            "Instruction-following difficulty (IFD, Superfiltering)",
            "augmentation=ifd",
            f"{SCORED}::test_ifd_keeps_what_the_question_helps_least_but_helps",
        ),
        Leaf(
            "Quality x complexity, then diversity (DEITA)",
            "augmentation=deita",
            f"{SCORED}::test_deita_takes_the_best_that_are_unlike",
            "trained scorers",
        ),
        Leaf(
            "A diverse coreset (k-center greedy, WaveCoder)",
            "augmentation=coreset",
            f"{SCORED}::test_k_centers_are_the_farthest_in_turn",
        ),
    ),
    "A · distillation": (
        Leaf(
            "Supervised fine-tuning",
            "objective=sft",
            "tests/methods/test_divergences.py::test_sft_reads_the_label_alone",
        ),
        Leaf("Forward KL", "objective=fkl", f"{DIVERGENCE}::test_forward_kl_by_hand"),
        Leaf("Reverse KL", "objective=rkl", f"{DIVERGENCE}::test_reverse_kl_by_hand"),
        Leaf("Jensen-Shannon", "objective=jsd", f"{DIVERGENCE}::test_jsd_by_hand_and_beta_weights_the_teacher"),
        Leaf(
            "Total variation",
            "objective=tvd",
            f"{DIVERGENCE}::test_total_variation_by_hand_and_as_the_largest_difference_over_events",
        ),
        Leaf("Similarity: L2", "objective=hidden_mse", f"{FEATURES}::test_by_hand"),
        Leaf("Similarity: L1", "objective=hidden_l1", f"{FEATURES}::test_by_hand"),
        Leaf("Similarity: cross-entropy", "objective=hidden_cross_entropy", f"{FEATURES}::test_by_hand"),
        Leaf("Similarity: maximum mean discrepancy", "objective=hidden_mmd", f"{FEATURES}::test_mmd_by_hand"),
        Leaf("Task-aware layers (TED)", "objective=ted", OBJECTIVES),
        Leaf(
            "Reinforcement learning: reward model",
            "objective=reward_model rollout=paired",
            OBJECTIVES,
        ),
        Leaf(
            "Reinforcement learning: PPO, GRPO",
            "objective=grpo rollout=on_policy rollout.samples=4 reward=verifier",
            "tests/objectives/test_policy.py::test_grpo_by_hand",
        ),
        Leaf(
            "Ranking: DPO",
            "objective=dpo rollout=paired",
            "tests/objectives/test_preference.py::test_values_against_another_model",
        ),
        Leaf("Ranking: RRHF", "objective=rrhf rollout=on_policy rollout.samples=4 reward=verifier", OBJECTIVES),
        Leaf("Ranking: PRO", "objective=pro rollout=on_policy rollout.samples=4 reward=verifier", OBJECTIVES),
    ),
    "B · white-box: logits": (
        Leaf("Soft labels at a temperature", "method=kd", METHODS),
        Leaf(
            "DistilBERT: a student of the teacher's layers",
            "student=pruned objective=[soft_ce,hidden_cosine]",
            OBJECTIVES,
        ),
        Leaf("MiniLLM", "method=minillm", METHODS),
        Leaf("GKD", "method=gkd", METHODS),
        Leaf("f-Distill", "method=fdistill", METHODS),
        Leaf("MiniMA: pruned students", "student=pruned objective=fkl", OBJECTIVES),
        Leaf("PD: a student trained on text first", "method=kd", METHODS, "student.prepare on a corpus of plain text"),
        Leaf("DistilBiLSTM, MixKD, ReAugKD", missing=EARLIER),
    ),
    "B · white-box: hints": (
        Leaf("PKD", "method=pkd", "tests/methods/test_layers.py::test_pkd_compares_directions_below_the_last_layer"),
        Leaf(
            "TinyBERT",
            "method=tinybert",
            "tests/methods/test_layers.py::test_tinybert_compares_scores_before_softmax_and_every_layer",
        ),
        Leaf(
            "MiniLM",
            "method=minilm",
            "tests/methods/test_layers.py::test_minilm_compares_distributions_and_relations_of_values",
        ),
        Leaf("TED", "objective=ted", OBJECTIVES),
        Leaf("MetaDistil, AD-KD, XtremeDistil, MobileBERT, HomoDistil", missing=EARLIER),
    ),
    "B · black-box": (
        Leaf(
            "In-context learning: few-shot prompts",
            "skill=asdiv skill.few_shot=2 student=tiny teacher=tiny",
            "tests/skills/test_dataset.py::test_prompts_have_a_system_text_demonstrations_and_a_form",
            "soft labels of in-context outputs",
        ),
        Leaf(
            "Chain of thought (Fine-tune-CoT, MCC-KD, SOCRATIC)",
            "augmentation=label_cot objective=sft",
            f"{LABELS}::test_the_rationale_is_learnt_without_the_prompt_that_requested_it",
            "MCC-KD's consistency of rationales, SOCRATIC's decomposer",
        ),
        Leaf(
            "Instruction following",
            "augmentation=labeling objective=sft",
            f"{LABELING}::test_the_teachers_text_replaces_the_references",
        ),
    ),
    "B · evaluation": (
        Leaf(
            "Adversarial robustness: changed items, and attacks that succeed",
            "skill=chain_sum teacher=tiny student=tiny evaluation.variants=[typos,distraction]",
            "tests/evaluation/test_robustness.py::test_a_system_on_changed_items",
            "AdvGLUE and ANLI themselves",
        ),
        Leaf(
            "Other distributions: a student of one skill on others",
            "skill=asdiv evaluation.skills=[gsm_symbolic]",
            "tests/reports/test_transfer.py::test_a_cell_is_the_mean_over_seeds_and_the_change",
            "Flipkart and DDXPlus themselves",
        ),
        Leaf(
            "A model as judge",
            "judge=pairwise judge.pairwise.verdict=likelihood",
            "tests/judges/test_judging.py::test_win_rate_ties_flips_and_missing_verdicts_by_hand",
        ),
        Leaf(
            "Fidelity beside generalisation",
            "evaluation=default",
            "tests/evaluation/test_agreement.py::test_divergences_are_those_of_the_objectives",
        ),
        Leaf(
            "Robustness (AdvGLUE, ANLI; shifted items)",
            "skill=mmlu 'evaluation.variants=[typos,option_order,distraction]'",
            "tests/evaluation/test_robustness.py::test_a_system_on_changed_items",
            "the sets themselves, which no embedded archive holds; paraphrases by a model",
        ),
        Leaf(
            "Exposure bias (ExAccErr)",
            "evaluation.excess_error=4",
            "tests/evaluation/test_excess_error.py::test_the_sums_by_hand",
        ),
    ),
}
