"""The leaves of both surveys on elicitation, for the page of coverage (`kd.pages.leaves`)."""

from kd.pages.leaf import Leaf

METHODS = "tests/methods/test_files.py::test_every_method_runs_on_the_tiny_pair"
DIVERGENCE = "tests/objectives/test_divergence.py"
LABELING = "tests/augmentation/test_labeling.py"
EXPANSION = "tests/augmentation/test_expansion.py"
CURATION = "tests/augmentation/test_curation.py"
SELF = "tests/augmentation/test_self_knowledge.py"
LABELS = "tests/augmentation/test_labels.py"
FEEDBACK = "tests/augmentation/test_feedback.py"

ELICITATION: dict[str, tuple[Leaf, ...]] = {
    "A · elicitation: labeling": (
        Leaf(
            "Labels of the teacher (SeqKD, LLaMA-GPT4, Vicuna)",
            "augmentation=labeling",
            f"{LABELING}::test_the_teachers_text_replaces_the_references",
        ),
        Leaf(
            "Several samples for each prompt",
            "augmentation=sampling",
            f"{LABELING}::test_samples_are_drawn_from_the_seed",
        ),
        Leaf(
            "Explanations by a system message (Orca)",
            "augmentation=explanations",
            f"{LABELS}::test_a_system_message_is_drawn_by_the_record_and_stays",
        ),
        Leaf(
            "Strategies, the prompt erased (Orca 2)",
            "augmentation=strategies",
            f"{LABELS}::test_every_strategy_responds_and_none_is_seen_by_the_student",
        ),
        Leaf(
            "Chains of thought (Fine-tune-CoT, Mixed Distill)",
            "augmentation=label_cot",
            f"{LABELS}::test_the_rationale_is_learnt_without_the_prompt_that_requested_it",
        ),
        Leaf(
            "Rationales as a second task (distilling step-by-step)",
            "skill=gsm_predict augmentation=rationale_task reduction=sequence objective=sft",
            f"{LABELS}::test_each_record_has_a_second_one_with_its_rationale",
        ),
        Leaf(
            "Programs of thought that are executed (MAmmoTH)",
            "augmentation=label_pot",
            f"{LABELS}::test_the_printed_answer_is_the_label",
        ),
        Leaf(
            "Few-shot annotation (AnnoLLM)",
            "augmentation=few_shot_labels",
            f"{LABELS}::test_demonstrations_are_others_and_are_erased",
            "explanations of the demonstrations by the teacher",
        ),
    ),
    "A · elicitation: expansion": (
        Leaf(
            "Self-Instruct, Alpaca",
            "augmentation=self_instruct",
            f"{EXPANSION}::test_self_instruct_by_hand",
        ),
        Leaf(
            "Evol-Instruct (WizardLM, WizardCoder, WizardMath)",
            "augmentation=evol_instruct",
            f"{EXPANSION}::test_evolution_by_hand",
            "WizardMath's reward models of instructions and steps",
        ),
        Leaf("Paraphrase (AugGPT)", "augmentation=paraphrase", f"{EXPANSION}::test_a_paraphrase_is_the_same_problem"),
        Leaf("Fusion of prompts (Instruction Fusion)", "augmentation=fusion", f"{EXPANSION}::test_fusion_by_hand"),
        Leaf(
            "Instruction back-translation",
            "augmentation=back_translation",
            f"{EXPANSION}::test_back_translation_by_hand",
            "the trained backward model; the teacher is prompted",
        ),
        Leaf(
            "Targeted subgroups (TDG)",
            "augmentation=subgroups",
            f"{EXPANSION}::test_the_student_fails_in_a_subgroup_which_grows",
            "the estimate whether data for a group harms others, and the human in the loop",
        ),
    ),
    "A · elicitation: curation": (
        Leaf(
            "Topics and simulated users (UltraChat)",
            "augmentation=ultrachat",
            f"{CURATION}::test_a_simulated_user_by_hand",
            "two different models; the teacher takes both parts",
        ),
        Leaf("Self-chat (Baize)", "augmentation=baize", f"{CURATION}::test_self_chat_by_hand"),
        Leaf("Textbooks (phi)", "augmentation=textbooks", f"{CURATION}::test_textbooks_by_hand", "exercises in code"),
        Leaf(
            "Snippets as seeds (OSS-Instruct)",
            "augmentation=oss_instruct skill=doctest_functions",
            f"{CURATION}::test_snippets_by_hand",
        ),
        Leaf(
            "Label-conditioned texts (ZeroGen)",
            "augmentation=zerogen",
            f"{CURATION}::test_zerogen_by_hand",
            "SunGen's weights of samples",
        ),
        Leaf(
            "Queries of documents (InPars)",
            "augmentation=inpars",
            f"{CURATION}::test_queries_by_hand",
            "negative documents for a reranker",
        ),
        Leaf("Personas and constraints", "augmentation=personas", f"{CURATION}::test_personas_by_hand"),
        Leaf(
            "Questions and answers on documents of a domain (the verticals' recipe)",
            "augmentation=domain_questions",
            f"{CURATION}::test_domain_questions_by_hand",
            "retrieval at evaluation",
        ),
    ),
    "A · elicitation: feature": (
        Leaf(
            "Distributions of one teacher (MiniLLM, GKD)",
            "objective=fkl",
            f"{DIVERGENCE}::test_forward_kl_by_hand",
        ),
        Leaf(
            "Targets of the teacher attached to the records, once, on disk",
            "targets=topk targets.cached=true",
            "tests/test_cache.py::test_training_from_the_cache_is_training_with_the_teacher",
        ),
        Leaf("Mean of two teachers' logits (BabyLlama)", "method=babyllama student=tiny", METHODS),
        Leaf("Text of the full-precision model itself (LLM-QAT)", missing="quantised students"),
        Leaf("Fused distributions of several tokenizers (FuseLLM)", missing="fusion across tokenizers"),
    ),
    "A · elicitation: feedback": (
        Leaf(
            "The teacher's distribution on the student's responses (GKD)",
            "method=gkd",
            "tests/methods/test_samples.py::test_gkds_coin_falls_for_the_student_in_a_share_of_steps",
        ),
        Leaf(
            "Critique and revision (constitutional AI)",
            "augmentation=[self_labeling,revised] objective=sft",
            f"{FEEDBACK}::test_the_revision_replaces_the_response_or_is_preferred_to_it",
        ),
        Leaf(
            "Scores of aspects (UltraFeedback)",
            "augmentation=[self_labeling,aspect_scores] objective=rrhf reward=scores",
            f"{FEEDBACK}::test_the_mean_over_aspects_is_the_score_and_the_order",
        ),
        Leaf(
            "Pairwise judging with a swap (RLAIF)",
            "augmentation=[self_labeling,pairwise_preferences] objective=dpo",
            f"{FEEDBACK}::test_the_preferred_response_is_first",
        ),
        Leaf(
            "Hard examples (Lion)",
            "augmentation=[labeling,hard_examples] objective=sft loop.rounds=2",
            f"{FEEDBACK}::test_hard_records_stay_and_new_ones_are_made_like_them",
        ),
        Leaf(
            "Repair after execution (PERsD)",
            "skill=humaneval augmentation=repaired objective=sft",
            f"{FEEDBACK}::test_what_the_student_gets_wrong_and_the_teacher_mends_is_learnt",
        ),
        Leaf(
            "Rewards of steps (WizardMath)",
            "augmentation=[self_labeling,step_scores] objective=rrhf reward=scores",
            f"{FEEDBACK}::test_the_steps_make_the_score",
            "a reward model of steps, and PPO with it",
        ),
    ),
    "A · elicitation: self-knowledge": (
        Leaf(
            "Accepted samples of the student's own, in rounds (ReST-EM, RFT)",
            "augmentation=rest_em loop.rounds=2",
            "tests/experiment/test_rounds.py::test_the_second_round_elicits_with_the_student_of_the_first",
        ),
        Leaf(
            "Rationales that lead to the answer (STaR)",
            "augmentation=star loop.rounds=3",
            f"{SELF}::test_star_keeps_right_rationales_and_gives_the_answer_where_there_is_none",
        ),
        Leaf(
            "Samples above thresholds that rise (ReST)",
            "augmentation=rest loop.rounds=3 loop.student=continue",
            f"{SELF}::test_the_threshold_of_rest_rises_with_the_round",
            "several Improve steps on the samples of one Grow step",
        ),
        Leaf(
            "Self-play against earlier rounds (SPIN)",
            "method=spin",
            "tests/methods/test_samples.py::test_spins_opponent_is_the_student_of_before",
        ),
        Leaf(
            "Majority of paths (LMSI)",
            "augmentation=lmsi",
            f"{SELF}::test_the_majority_is_kept_whatever_the_reference",
        ),
        Leaf(
            "Self-rewarding",
            "augmentation=self_rewarding objective=dpo loop.rounds=2 loop.student=continue",
            f"{SELF}::test_the_best_and_the_worst_become_a_pair",
            "prompts that the student makes itself",
        ),
        Leaf(
            "Context distillation (Self-Align)",
            "augmentation=context_distillation",
            f"{SELF}::test_the_context_is_read_and_not_learnt",
        ),
        Leaf(
            "Contrastive prompts (RLCD)",
            "augmentation=rlcd objective=dpo",
            f"{SELF}::test_contrasting_prompts_make_the_pair",
        ),
    ),
}
