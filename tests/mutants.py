"""Small changes of meaning, one at a time, each of which a test must notice: `make mutants`.

A mutant is a piece of text of one file, what replaces it in a copy of the tree, and the test that must then fail. All
these tests are run once without a change first, where they must pass. A mutant whose text is not in its file exactly
once is an error, and so is one that breaks the collection of tests or does not end: so the table stays true.

    python tests/mutants.py [--jobs N] [WORD ...]      # only the mutants with one of these words in name or file
"""

import argparse
import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).resolve().parents[1]
COPIED = ("modeling_electra_exit", "trainers", "model_cards", "research", "tests", "benchmarks", "pyproject.toml")
SECONDS = 240  # for the tests of one mutant, at most
NOT_THE_COPY = 70  # an exit status that pytest has not
SECONDS_UNCHANGED = 1800  # for all of them without a change
# What the tests import of others, loaded once and shared by all of their processes.
PRELOADED = ["pytest", "hypothesis", "torch", "transformers.trainer", "transformers.models.electra.modeling_electra",
             "transformers.models.bert.modeling_bert", "datasets", "evaluate", "accelerate", "scipy.stats",
             "sklearn.metrics", "pandas"]  # fmt: skip

MODEL, POLICY, CRITERIA, STATE, HEADS, GENERATOR_HEAD = (
    f"modeling_electra_exit/{name}.py"
    for name in (
        "modeling_electra_exit",
        "exit_policy",
        "exit_criteria",
        "exit_state",
        "modeling_heads",
        "generator_head",
    )
)
COLLATOR, TRAINER, CHECKPOINTS, HUB, LEAKS, OPTIMIZER, GENERATORS, KERNELS = (
    f"trainers/{name}.py"
    for name in (
        "pretraining/collator",
        "pretraining/trainer",
        "runtime/checkpoints",
        "sharing/hub",
        "sharing/leaks",
        "runtime/optimization",
        "generators/statistical",
        "runtime/cpu_kernels",
    )
)


class Mutant(NamedTuple):
    """What is wrong, where, and by which test it is caught."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = [
    # ---- Exit policy ----
    Mutant(
        "`random` ranks by the exit head's logits",
        POLICY,
        "return Ranking(evidence.uniform(), num_kept)",
        "return Ranking(evidence.logits.float(), num_kept)",
        "tests/test_defaults.py::test_chance_does_not_look_at_the_predictions",
    ),
    Mutant(
        "`random` draws half of its places, and the exit head's logits fill the others",
        MODEL,
        "selection = draw(scores, num_kept, **masks)",
        "selection = select(evidence.logits, num_kept, **masks, exploration=0.5, exploration_noise=scores)",
        "tests/test_defaults.py::test_chance_does_not_look_at_the_predictions",
    ),
    Mutant(
        "`random` prefers the beginning of the text",
        POLICY,
        "return Ranking(evidence.uniform(), num_kept)",
        "return Ranking(evidence.uniform() - torch.arange(evidence.logits.shape[1]) / 5000, num_kept)",
        "tests/test_defaults.py::test_every_position_is_as_likely_to_continue_as_any_other[64-1-seeds]",
    ),
    Mutant(
        "a sampled special token is protected",
        MODEL,
        "self._protected_tokens(embedding_output, original_ids)",
        "self._protected_tokens(embedding_output, input_ids)",
        "tests/test_defaults.py::test_a_sample_that_is_a_special_token_exits_like_any_other",
    ),
    Mutant(
        "a capacity that rounding put above a multiple takes another",
        POLICY,
        "math.ceil(tokens / CAPACITY_MULTIPLE - 1e-9)",
        "math.ceil(tokens / CAPACITY_MULTIPLE)",
        "tests/modeling/test_exit_policy.py::test_capacity_rounds_up_to_a_multiple_of_8",
    ),
    Mutant(
        "a sample that rounding put above a number takes one more",
        POLICY,
        "math.ceil(share * tokens - 1e-9)",
        "math.ceil(share * tokens)",
        "tests/modeling/test_exit_policy.py::test_a_sample_is_rounded_up",
    ),
    Mutant(
        "sampled entropy is ranked without chance",
        POLICY,
        ".clamp_min(1e-9).log() + gumbel(evidence.uniform())",
        ".clamp_min(1e-9).log()",
        "tests/modeling/test_exit_policy.py::test_sampled_entropy_draws_in_proportion_to_entropy",
    ),
    Mutant(
        "the thresholds of original and replaced tokens are exchanged",
        POLICY,
        "torch.where(evidence.logits > 0, replaced, original)",
        "torch.where(evidence.logits > 0, original, replaced)",
        "tests/modeling/test_exit_policy.py::test_thresholds_keep_the_right_tokens_and_no_more_than_a_multiple_of_8",
    ),
    Mutant(
        "a threshold lets protected tokens go",
        POLICY,
        "continues = continues | evidence.protected",
        "continues = continues & ~evidence.protected",
        "tests/modeling/test_exit_policy.py::test_special_tokens_continue_past_every_threshold",
    ),
    Mutant(
        "a systematic sample starts at the same place always",
        POLICY,
        "return ((starts * length).long() + spaced) % length",
        "return ((starts * 0).long() + spaced) % length",
        "tests/modeling/test_exit_policy.py::test_a_systematic_sample_gives_every_position_the_same_chance",
    ),
    Mutant(
        "patience needs one agreement more",
        CRITERIA,
        "return agreements >= self.thresholds[number]",
        "return agreements > self.thresholds[number]",
        "tests/modeling/test_heads.py::test_a_batch_of_sequences_exits_as_each_alone",
    ),
    Mutant(
        "an item is as certain as its most certain prediction",
        CRITERIA,
        "softmax(dim=-1).amax(dim=-1).amin(dim=-1)",
        "softmax(dim=-1).amax(dim=-1).amax(dim=-1)",
        "tests/modeling/test_heads.py::test_a_batch_of_sequences_exits_as_each_alone",
    ),
    # ---- Model ----
    Mutant(
        "the survivors' mask has its keys in the order of the text",
        MODEL,
        "gather(1, self.order if visible is not None else self.items)",
        "narrow(1, 0, (self.order if visible is not None else self.items).shape[1])",
        "tests/modeling/test_modeling.py::test_gathered_survivors_equal_masked_full_computation",
    ),
    Mutant(
        "tokens that exited are seen without their normalisation",
        MODEL,
        "else attention.LayerNorm(frozen_states)",
        "else frozen_states",
        "tests/modeling/test_modeling.py::test_gathered_survivors_equal_masked_full_computation",
    ),
    Mutant(
        "every chosen token counts as replaced",
        MODEL,
        "corrupted = self.put(text, replacements)\n        return corrupted, (corrupted != text).long()",
        "corrupted = self.put(text, replacements)\n"
        "        return corrupted, self.put(torch.zeros_like(text), torch.ones_like(replacements))",
        "tests/modeling/test_modeling.py::test_a_sampled_token_equal_to_the_original_counts_as_original",
    ),
    Mutant(
        "the exits' loss is a sum and no mean",
        MODEL,
        "torch.stack(losses).mean()",
        "torch.stack(losses).sum()",
        "tests/modeling/test_modeling.py::test_exit_loss_is_the_mean_over_exits_of_the_tokens_that_arrive",
    ),
    Mutant(
        "padding is in the loss",
        MODEL,
        "(token_mask == 1).to(values.dtype)",
        "(token_mask >= 0).to(values.dtype)",
        "tests/modeling/test_modeling.py::test_joint_loss_equals_a_plain_loop",
    ),
    Mutant(
        "the gain's regressor bends the encoder",
        MODEL,
        "exits.gain_heads[number](normed.detach())",
        "exits.gain_heads[number](normed)",
        "tests/modeling/test_modeling.py::test_gains_are_learned_from_audit_tokens_alone_and_touch_nothing_else",
    ),
    Mutant(
        "exits share the noise of the generator",
        MODEL,
        "self.noise[:, :length, 2 + 2 * number + exploration]",
        "self.noise[:, :length, 2 * number + exploration]",
        "tests/modeling/test_modeling.py::test_no_two_draws_of_a_step_share_their_noise",
    ),
    Mutant(
        "an exit shares its noise with the next",
        MODEL,
        "self.noise[:, :length, 2 + 2 * number + exploration]",
        "self.noise[:, :length, 2 + number + exploration]",
        "tests/modeling/test_modeling.py::test_no_two_draws_of_a_step_share_their_noise",
    ),
    Mutant(
        "a draw inverts both steps by one number",
        GENERATOR_HEAD,
        "_invert(chosen, noise[:, 1:])",
        "_invert(chosen, noise[:, :1])",
        "tests/modeling/test_generator_head.py::test_samples_follow_the_distribution",
    ),
    Mutant(
        "mean pooling reads padding",
        HEADS,
        "real = (token_mask != 0).unsqueeze(1)",
        "real = (token_mask >= 0).unsqueeze(1)",
        "tests/modeling/test_heads.py::test_mean_pooling_reads_every_token_but_padding",
    ),
    Mutant(
        "a head's loss has the exits' without their weight",
        HEADS,
        "loss = loss + weight * exit_loss",
        "loss = loss + exit_loss",
        "tests/modeling/test_heads.py::test_loss_is_the_final_heads_and_the_mean_of_the_exits",
    ),
    Mutant(
        "the area under the curve counts pairs of a token with itself",
        STATE,
        "num_positive * (num_positive + 1) / 2",
        "num_positive * (num_positive - 1) / 2",
        "tests/modeling/test_exit_state.py::test_roc_auc_is_sklearns",
    ),
    # ---- Collator and generators ----
    Mutant(
        "masks and noise have one seed",
        COLLATOR,
        "row_generators(self.seed, epoch, checksums, 1)",
        "row_generators(self.seed, epoch, checksums)",
        "tests/trainers/pretraining/test_collator.py::test_no_two_streams_of_chance_have_one_seed",
    ),
    Mutant(
        "80 % of the chosen tokens become [MASK]",
        COLLATOR,
        "MASK_SHARE = 0.85",
        "MASK_SHARE = 0.8",
        "tests/trainers/pretraining/test_collator.py::test_labels_are_the_originals_of_masked_positions",
    ),
    Mutant(
        "the generator `self` proposes for this epoch's positions",
        COLLATOR,
        "row_generators(self.seed, epoch + 1, checksums)",
        "row_generators(self.seed, epoch, checksums)",
        "tests/trainers/generators/test_generators.py::test_self_proposals_serve_the_next_visit_and_unigram_the_first",
    ),
    Mutant(
        "the temperature of `frozen` rises",
        "trainers/generators/neural.py",
        "(first + (last - first) * progress)",
        "(last + (first - last) * progress)",
        "tests/trainers/generators/test_generators.py::test_frozen_draws_from_the_model_in_the_folder[ours]",
    ),
    Mutant(
        "the bigram never backs off where it has counts",
        GENERATORS,
        "np.where(followed > 0, self.DISCOUNT * successors",
        "np.where(followed > 0, 0 * successors",
        "tests/trainers/generators/test_generators.py::test_distribution_of_the_bigram",
    ),
    Mutant(
        "shuffled tokens keep their places",
        GENERATORS,
        "np.roll(cycle, 1)",
        "np.roll(cycle, 0)",
        "tests/trainers/generators/test_generators.py::test_shuffled_tokens_change_places_and_none_is_lost",
    ),
    Mutant(
        "special tokens are counted for `unigram`",
        "trainers/generators/base.py",
        "        counts[self.tokenizer.all_special_ids] = 0\n",
        "",
        "tests/trainers/generators/test_generators.py::test_distributions",
    ),
    # ---- Optimizer, training ----
    Mutant(
        "weight decay is not rescaled",
        OPTIMIZER,
        'group["weight_decay"] * correction2 / correction1',
        'group["weight_decay"]',
        "tests/trainers/runtime/test_optimization.py::test_matches_electras_update",
    ),
    Mutant(
        "epsilon is not rescaled",
        OPTIMIZER,
        'group["eps"] / correction2',
        'group["eps"]',
        "tests/trainers/runtime/test_optimization.py::test_matches_electras_update",
    ),
    Mutant(
        "every layer learns as the one above it should",
        OPTIMIZER,
        "return int(layer[1]) + 1 if layer",
        "return int(layer[1]) + 2 if layer",
        "tests/trainers/finetuning/test_finetuning.py::test_learning_rates_a_layer",
    ),
    Mutant(
        "a place that fills a row up counts",
        MODEL,
        ".masked_fill((masked_positions < 0).flatten(), -100)",
        "",
        "tests/benchmarks/test_launches.py::test_places_give_the_step_that_labels_alone_give",
    ),
    Mutant(
        "an exit at inference reads twice",
        MODEL,
        "num_exiting, staying, longest = fetch(exiting.sum(), continues.sum(), (read * places).amax())",
        "(num_exiting, staying), (longest,) = fetch(exiting.sum(), continues.sum()), fetch((read * places).amax())",
        "tests/benchmarks/test_launches.py::test_an_exit_at_inference_waits_once",
    ),
    Mutant(
        "a checkpoint is written before the guards have looked",
        TRAINER,
        '''        """Excludes saving from the training time."""
        self._guards.settle()
''',
        '''        """Excludes saving from the training time."""
''',
        "tests/trainers/pretraining/test_trainer.py::test_on_a_device_a_nan_loss_stops_the_run_one_step_later",
    ),
    Mutant(
        "a batch's part of the loss is judged as if it were all of it",
        TRAINER,
        "self.state.global_step + 1, self._batches, self.current_gradient_accumulation_steps",
        "self.state.global_step + 1, self._batches, 1",
        "tests/trainers/pretraining/test_trainer.py::test_a_loss_is_judged_whole_under_gradient_accumulation",
    ),
    Mutant(
        "a NaN loss passes",
        TRAINER,
        "if not value * parts <= EXPLODED * self._uninformed_loss():",
        "if value * parts > EXPLODED * self._uninformed_loss():",
        "tests/trainers/pretraining/test_trainer.py::test_a_nan_loss_stops_the_run_before_the_weights_are_updated",
    ),
    Mutant(
        "evaluation masks as the epoch in training does",
        TRAINER,
        "self.masks_of(0)",
        "self.masks_of(self.epoch)",
        "tests/trainers/pretraining/test_trainer.py::test_evaluation_is_the_same_every_time_and_at_full_depth",
    ),
    Mutant(
        "the recall that is logged is the original tokens'",
        TRAINER,
        "1 - state.error_on_left()[:, 1]",
        "1 - state.error_on_left()[:, 0]",
        "tests/trainers/pretraining/test_trainer.py::test_the_log_tells_how_good_the_exits_are",
    ),
    Mutant(
        "the exits' loss starts at its full weight",
        TRAINER,
        "(self.state.global_step + 1) / (steps + 1)",
        "(self.state.global_step + steps) / (steps + 1)",
        "tests/trainers/pretraining/test_trainer.py::test_the_exit_loss_warms_up",
    ),
    Mutant(
        "dropout's gradient is not scaled",
        KERNELS,
        "drop(grad_output, *ctx.saved_tensors, ctx.staying).mul_(256 / ctx.staying)",
        "drop(grad_output, *ctx.saved_tensors, ctx.staying)",
        "tests/trainers/runtime/test_cpu_kernels.py",
    ),
    # ---- Checkpoints and pushes ----
    Mutant(
        "a checkpoint's files are not flushed before it has its name",
        CHECKPOINTS,
        "    for path in files:\n        flush(path)\n",
        "",
        "tests/trainers/runtime/test_checkpoints.py::test_everything_is_on_the_disk_before_it_has_its_name",
    ),
    Mutant(
        "a manifest is not flushed before it has its name",
        "trainers/runtime/files.py",
        "    flush(incomplete)\n",
        "",
        "tests/trainers/runtime/test_checkpoints.py::test_everything_is_on_the_disk_before_it_has_its_name",
    ),
    Mutant(
        "checksums are not compared",
        CHECKPOINTS,
        "if _sha256(path) != checksum:",
        "if _sha256(path) == '':",
        "tests/trainers/runtime/test_checkpoints.py::test_a_damaged_checkpoint_is_named_and_the_one_before_is_used",
    ),
    Mutant(
        "a run continues from its oldest checkpoint",
        CHECKPOINTS,
        "map(Path, reversed(sort_checkpoints(str(folder))))",
        "map(Path, sort_checkpoints(str(folder)))",
        "tests/trainers/runtime/test_checkpoints.py::test_a_damaged_checkpoint_is_named_and_the_one_before_is_used",
    ),
    Mutant(
        "the card is not searched for secrets",
        HUB,
        "check_clean({**files, CARD: card.encode(), ",
        "check_clean({**files, ",
        "tests/trainers/sharing/test_hub_faults.py::test_a_secret_in_the_card_or_the_message_stops_the_push_before_anything_is_sent",
    ),
    Mutant(
        "a cached token is searched for in the place of the one given",
        LEAKS,
        "found = {token, get_token(), ",
        "found = {get_token() or token, ",
        "tests/trainers/sharing/test_leaks.py::test_secrets_are_found_wherever_they_hide",
    ),
    Mutant(
        "where the best checkpoint lies is told",
        HUB,
        'state["best_model_checkpoint"] = Path(best).name',
        'state["best_model_checkpoint"] = best',
        "tests/trainers/sharing/test_hub_faults.py::test_the_path_of_the_best_checkpoint_is_not_pushed",
    ),
    Mutant(
        "the pickled arguments are pushed with a checkpoint",
        HUB,
        "TRAINING_STATE = (TRAINER_STATE_NAME, ",
        'TRAINING_STATE = (TRAINER_STATE_NAME, "training_args.bin", ',
        "tests/trainers/sharing/test_leaks.py::test_of_a_checkpoint_only_what_resuming_needs",
    ),
]


def copy_tree(folder: Path) -> Path:
    """What the tests need of this tree, with the packages where they are imported from."""
    for name in COPIED:
        source, ignore = ROOT / name, shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder)
    for name in ("trainers", "model_cards"):
        (folder / "modeling_electra_exit" / name).symlink_to(f"../{name}")
    return folder


def run_tests(folder: Path, tests: list[str]) -> None:
    """Run in a process of its own, which ends with pytest's exit status."""
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    os.environ["HF_HOME"] = os.environ["ELECTRA_EXIT_TEST_HOME"] = str(folder / "home")
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "tests"))]
    with open(folder / "log", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        import pytest

        status = pytest.main(["-n", "0", "-q", "-x", "-p", "no:cacheprovider", *tests])
        import modeling_electra_exit.trainers as ours

        if not Path(ours.__file__).resolve().is_relative_to(folder):
            print("the tests did not import the copy")
            status = NOT_THE_COPY
    sys.exit(int(status))


def outcome(context, tests: list[str], mutant: Mutant | None = None) -> tuple[int | None, str]:
    """The exit status of `tests` on a copy of the tree with a mutant in it, `None` where they did not end; and what
    they printed."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        folder = copy_tree(Path(place).resolve())
        if mutant is not None:
            text = (folder / mutant.file).read_text(encoding="utf-8")
            (folder / mutant.file).write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        process = context.Process(target=run_tests, args=(folder, tests))
        process.start()
        process.join(SECONDS_UNCHANGED if mutant is None else SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            return None, ""
        return process.exitcode, (folder / "log").read_text(encoding="utf-8", errors="replace")


def stale(mutants: list[Mutant]) -> list[str]:
    """Mutants whose text is not in their file exactly once."""
    counts = [(ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) for mutant in mutants]
    return [
        f"{mutant.name}: its text is in {mutant.file} {count} times, not once"
        for mutant, count in zip(mutants, counts, strict=True)
        if count != 1
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only the mutants with one of these in their name or file")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if not args.words or any(word in f"{m.name} {m.file}" for word in args.words)]
    if problems := stale(chosen):
        print("\n".join(problems), file=sys.stderr)
        return 2
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    status, printed = outcome(context, sorted({mutant.test for mutant in chosen}))
    if status != 0:
        print(f"{printed}\nwithout any change, the tests do not pass", file=sys.stderr)
        return 2
    wrong = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        outcomes = pool.map(lambda mutant: outcome(context, [mutant.test], mutant), chosen)
        for mutant, (status, printed) in zip(chosen, outcomes, strict=True):
            verdict = {1: "caught", 0: "SURVIVED", None: "DID NOT END"}.get(status, "BROKE THE TESTS")
            wrong += verdict != "caught"
            print(f"{verdict:16} {mutant.file}: {mutant.name}", flush=True)
            if verdict == "BROKE THE TESTS":
                print(printed, file=sys.stderr)
    print(f"{len(chosen) - wrong} of {len(chosen)} caught")
    return min(1, wrong)


if __name__ == "__main__":
    sys.exit(main())
