"""The common base of both trainers: prompts, validation and the log."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import cast

from accelerate.utils import extract_model_from_parallel
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    TrainerControl,
)

from environments.types import Trajectory
from rewards import RewardSum
from srl.config.mixture import Mixture
from srl.config.parts import LossSettings
from srl.config.router import ReplaySettings
from srl.config.settings import TrainerConfig, check_evaluation, check_one_process
from srl.data.mixing import MixedStream, Stream
from srl.data.rows import Rows, dropped
from srl.data.shots import draw_shots
from srl.data.steps import StepExample, trajectory_numbers
from srl.data.stream import PromptStream, digest_of
from srl.errors import UsageError
from srl.evaluation.expert_use import expert_use, select
from srl.evaluation.judging import judged
from srl.evaluation.solving import Attempt, accuracy, solve_validation
from srl.models.expert_kernels import use_experts
from srl.models.loading import context_limit, end_turns, prompt_format
from srl.models.lora import check_adapter
from srl.models.memory import fits_into_memory
from srl.models.positions import other_beyond
from srl.models.precision import use_float32
from srl.models.prefix_tree import Row
from srl.models.replay import Routes
from srl.models.routing import Part, save_bias
from srl.models.scoring import CompletionScores, completion_log_probs
from srl.models.tree_models import attending_over_trees, refusal
from srl.models.trial import check_scoring
from srl.models.vocabulary import fit_tokenizer
from srl.rollout.choice import way_of
from srl.rollout.samplers import Sampler, make_sampler
from srl.runs.folder import CHOSEN, write_json
from srl.training.by_the_clock import SaveEveryMinutes, StopAfterMinutes, StopWhenOver
from srl.training.checkpoints import Saving
from srl.training.divergence import refuse_policy
from srl.training.progress import ProgressReport
from srl.training.resuming import ResumableTrainer
from srl.training.routers import Routers
from srl.training.run_log import mean_loss
from srl.training.trackers import check_installed

_log = logging.getLogger(__name__)


class StepTrainer(ResumableTrainer):
    """A trainer whose rows are expert steps. `SRLTrainer` and `ExpertTrainer` extend it.

    The `__init__` of a subclass calls `_prepare`, then the library's `__init__`, then `_attach`.

    Attributes:
        form: the words around a step.
        context_limit: tokens that the policy can read and write together; None is no limit.
        validation_trajectories: expert solutions of the problems for `evaluate`.
        rewards: the rewards of a step.
        prompts: token ids of each training row's prompt.
        routers: the routers of the policy; a dense policy has none.
        start_lines: functions that return the lines for the user at the start.
        tree_refusal: why shared prefixes are computed again for each row; None if only once.
    """

    control: TrainerControl
    prompts: list[list[int]]

    def _prepare(
        self,
        model: PreTrainedModel,
        settings: TrainerConfig,
        tokenizer: PreTrainedTokenizerBase,
        train_trajectories: Sequence[Trajectory],
        validation_trajectories: Sequence[Trajectory],
        rewards: RewardSum,
        mixture: Mixture | None,
        *,
        best_by: Sequence[str],
    ) -> list[Trajectory]:
        """Checks the model and the settings, and makes the prompt format.

        Returns:
            The expert solutions to train on: all except those of the worked examples' problems.

        Raises:
            UsageError: the model or the settings cannot be used; the message says why.
        """
        # An earlier trainer of this model may have left its autocast around the forward. It would
        # round the numbers of the trials here.
        extract_model_from_parallel(model, keep_fp32_wrapper=False)
        check_adapter(model)
        self.weights_line = use_float32(model)
        use_experts(model, settings.experts_implementation)
        fit_tokenizer(model, tokenizer)
        check_one_process(settings)
        check_evaluation(settings, validates=bool(validation_trajectories), best_by=best_by)
        check_installed(settings.report_to)
        self.routers = Routers(model, settings)
        self.settings = settings
        self.rewards = rewards
        self.mixture = mixture
        shots, rest = draw_shots(train_trajectories, settings, seed=settings.split_seed)
        self.form = prompt_format(model, tokenizer, settings, shots=shots)
        end_turns(model, self.form.end_id)
        self.context_limit = context_limit(model)
        self.validation_trajectories = list(validation_trajectories)
        return rest

    def _take_rows(
        self,
        examples: Sequence[StepExample],
        drops: Mapping[str, int],
        count_tokens: Callable[[], Sequence[int]],
    ) -> None:
        """Makes the stream over the training rows.

        Args:
            examples: the rows.
            drops: why other rows were dropped -> how many.
            count_tokens: returns the number of the expert's tokens in each row; called if needed.

        Raises:
            UsageError: there are fewer rows than one step takes.
        """
        settings = self.settings
        in_order, data = settings.prompt_order == "trajectory", digest_of(examples)
        counted = self.mixture is not None or settings.max_expert_tokens is not None
        self._row_tokens = count_tokens() if counted and examples else []
        self.expert_tokens = 0
        self._examples = list(examples)
        self.stream: Stream
        if self.mixture is not None and examples:
            self.stream = MixedStream(
                examples,
                self.mixture,
                settings.seed,
                tokens=self._row_tokens,
                in_order=in_order,
                data=data,
            )
        elif examples:
            units = trajectory_numbers(examples) if in_order else None
            self.stream = PromptStream(len(examples), settings.seed, units=units, data=data)
        count = self.stream.rows_an_epoch if examples else 0
        if count < settings.prompts_per_step:
            raise UsageError(
                f"there are {count} training rows{dropped(drops)}, fewer than prompts_per_step "
                f"{settings.prompts_per_step}; give more data"
                + (f", or set prompts_per_step to {count} or less" if count else "")
            )

    def _attach(self, *, first_lines: Sequence[Callable[[], str]]) -> None:
        """Replaces the library's progress and checkpoints by ours, after its `__init__`.

        Args:
            first_lines: functions that return lines for the user at the start.

        Raises:
            UsageError: the policy cannot be sampled or scored exactly, or its routes cannot be
                recorded.
        """
        # The library would count a step of 64 rollouts as one sample.
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self._saving = Saving(self.state_dict)
        self._saving.attach(self)
        self._choose_experts()
        if self.routers.chosen is not None:
            self.callback_handler.callbacks.insert(0, self.routers.chosen)
        settings = self.settings
        times = settings.num_iterations if isinstance(settings, LossSettings) else 1
        self._clock: StopAfterMinutes | None = None
        if settings.max_minutes is not None:
            self._clock = StopAfterMinutes(settings.max_minutes, multiple_of=times)
            self.callback_handler.callbacks.insert(0, self._clock)
        over = StopWhenOver(self._rows_are_over, multiple_of=times)
        self.callback_handler.callbacks.insert(0, over)
        if settings.save_every_minutes is not None:
            saves = SaveEveryMinutes(settings.save_every_minutes, multiple_of=times)
            # It comes before the callbacks that read whether this step is saved.
            self.callback_handler.callbacks.insert(1, saves)
        model = self.accelerator.unwrap_model(self.model)
        check_scoring(model, pad_id=int(self.processing_class.pad_token_id))
        shares = self.settings.prefix_tree
        self.tree_refusal = refusal(model) if shares else "prefix_tree is off"
        way = way_of(model, share=shares)
        slower = way.line()
        if self.routers.replays and not way.places:
            raise UsageError(
                f"replay_routes is true, but {slower}, and so its routes are not on record; leave "
                "replay_routes away"
            )
        mixture = self.stream.line() if isinstance(self.stream, MixedStream) else ""
        lines = (
            *(self.weights_line, slower, self._positions_line(), self._shots_line(), mixture),
            self.routers.line(),
        )
        once = [line for line in lines if line]
        self.start_lines: list[Callable[[], str]] = [
            *(partial(str, line) for line in once),
            *first_lines,
        ]
        shown = any(
            isinstance(callback, ProgressReport) for callback in self.callback_handler.callbacks
        )
        if not self.settings.disable_tqdm and not shown:
            # The command line shows the same, but signals are left to the user's script.
            self.add_callback(ProgressReport(Console(), first=self.start_lines))

    # -- documented methods of Trainer -----------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Returns a loader of ticks, one per optimiser step; the prompt stream chooses the rows."""
        return DataLoader(Ticks(self.args.max_steps), batch_size=1)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the policy if its numbers are finite.

        Raises:
            DivergedError: weights, optimiser state or logits are not finite.
            RunError: a log of the run is not at its path any more.
        """
        with self.accelerator.autocast():
            refuse_policy(self.model, self.optimizer, self.prompts[0])
        if _internal_call and output_dir is not None:  # the first files of a checkpoint
            self.run_log.positions()
            self._saving.begin(Path(output_dir), self.args)
        super().save_model(output_dir, _internal_call)
        save_bias(self._bare_model, Path(output_dir or str(self.args.output_dir)))

    def evaluate(
        self,
        eval_dataset: object = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Logs and returns greedy validation accuracy and the method's own held-out figures."""
        if not self.validation_trajectories:
            raise UsageError("evaluation needs validation_trajectories: set validation_problems")
        started = time.perf_counter()
        attempts, figures = self._validate()
        attempts = judged(attempts, self.settings)
        short = [a for a in attempts if len(a.trajectory.steps) <= self.settings.short_steps]
        values = {
            "problems": len(attempts),
            "accuracy": accuracy(attempts).value,
            "accuracy_short": accuracy(short).value,
            **figures,
            "seconds": time.perf_counter() - started,
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs the library's figures together with those of the step."""
        if "loss" in logs:
            logs = {**logs, **self.run_log.take_noted()}
        if "train_loss" in logs:  # the library's mean covers this process only
            logs = {**logs, "train_loss": mean_loss(self.state.log_history)}
        super().log(logs, start_time)  # transformers adds the epoch to `logs`
        # transformers computes its epoch from the steps, not from the rows.
        figures = {name: value for name, value in logs.items() if name != "epoch"}
        self.run_log.write_metrics(self.state.global_step, figures)

    # -- parts -----------------------------------------------------------------------------------

    def _choose_experts(self) -> None:
        """Chooses the experts to train by how the starting policy uses them on the first rows."""
        how = self.routers.selection
        if how is None:
            return
        some = slice(how["rows"])
        with self.accelerator.autocast():
            use = expert_use(
                cast(PreTrainedModel, self._bare_model),
                self.routers.layers,
                self.form,
                Rows(self._examples[some], self.prompts[some], Counter()),
                budget=self.settings.rollout_token_budget // 8,
                share=self.settings.prefix_tree,
            )
        chosen = select(use.scores(how["by"]), how["threshold"])
        self.routers.choose(chosen)
        folder = Path(str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CHOSEN, {**how, "tokens": use.tokens, "layers": chosen})

    def _begin_routing(
        self,
        model: nn.Module,
        parts: Sequence[Part],
        routes: Sequence[Sequence[Routes | None]] = (),
        *,
        fresh: bool = True,
    ) -> None:
        """Starts the routing of a step, before its micro-batches; see `Routers.begin`."""

        def look(number: int) -> None:
            rows, tree = parts[number]
            with self._attention(model, tree):
                self._score(model, rows, tree=tree)

        self.routers.begin(parts, look, self.args.device, routes, fresh=fresh)

    def _end_routing(self) -> None:
        """Ends the routing of a step: logs the load, moves the biases, warns of collapse."""
        figures, counts = self.routers.end()
        if not counts:
            return
        step = self.state.global_step + 1
        self.run_log.note(figures)
        self.run_log.write_load(step, counts)
        for layer in self.routers.collapsed(counts):
            _log.warning("step %d: %s", step, self.routers.collapse(layer, counts[layer]))

    def _positions_line(self) -> str | None:
        limit = other_beyond(self.accelerator.unwrap_model(self.model))
        longest = max(map(len, self.prompts)) + self.settings.completion_length
        if limit is None or longest <= limit:
            return None
        return (
            f"a prompt and its completion may take {longest:,} tokens; from {limit + 1:,} on this "
            "model reads all rows of a batch with other position embeddings (longrope), so some "
            "are trained on others than they were sampled with, and sampler_gap grows: lower "
            f"{self.settings.length_field}, or leave long problems out"
        )

    def _shots_line(self) -> str | None:
        if not self.form.shots:
            return None
        tokens = len(self.form.encode_segments("", [])[0])
        return (
            f"few_shot: every prompt begins with {len(self.form.shots)} worked examples "
            f"({tokens:,} tokens), whose problems are not trained on"
        )

    def _fits_into_memory(self) -> AbstractContextManager[None]:
        """Returns a context that explains out-of-memory errors of training, not of sampling."""
        checkpointing = self.settings.gradient_checkpointing
        return fits_into_memory(
            "training",
            self.args.device,
            {"micro_batch_tokens": self.settings.micro_batch_tokens},
            ("" if checkpointing else "set gradient_checkpointing to true (false now); ")
            + "a lora block needs no optimiser state of the whole model",
        )

    def sampler(self) -> Sampler:
        """Returns a sampler of the policy as it is now."""
        return make_sampler(
            self.accelerator.unwrap_model(self.model),
            pad_id=int(self.processing_class.pad_token_id),
            settings=self.settings,
            record_routes=isinstance(self.settings, ReplaySettings),
        )

    def _count(
        self, rows: Sequence[int], kept: Sequence[bool], spreads: Sequence[float] = ()
    ) -> None:
        """Counts the rows of an optimiser step; see `MixedStream.count`."""
        self.run_log.note_last(self.stream.count(rows, kept, spreads))
        if self._row_tokens:
            self.expert_tokens += sum(self._row_tokens[row] for row in rows)

    def _attention(self, model: nn.Module, tree: bool) -> AbstractContextManager[None]:
        """Returns the context for attention over a micro-batch, forward and backward."""
        return attending_over_trees(self.accelerator.unwrap_model(model)) if tree else nullcontext()

    def _score(
        self,
        model: nn.Module,
        rows: Sequence[Row],
        *,
        tree: bool,
        temperature: float = 1.0,
        with_entropy: bool = False,
        entropy_gradient: bool = False,
        with_top: bool = False,
    ) -> CompletionScores:
        """Returns the scores of a micro-batch's completions; call it inside `_attention`."""
        # Accelerate autocasts the model's own forward, but the model's parts make the scores.
        with self.accelerator.autocast():
            return completion_log_probs(
                model,
                rows,
                pad_id=int(self.processing_class.pad_token_id),
                temperature=temperature,
                device=self.args.device,
                with_entropy=with_entropy,
                entropy_gradient=entropy_gradient,
                with_top=with_top,
                tree=tree,
            )

    @abstractmethod
    def _validate(self) -> tuple[list[Attempt], dict[str, float]]:
        """Returns one greedy attempt at each validation problem, and further log figures."""

    def _attempts(self) -> list[Attempt]:
        with self.accelerator.autocast():
            return solve_validation(
                self.sampler(),
                self.form,
                self.validation_trajectories,
                self.settings,
                context_limit=self.context_limit,
            )


class Ticks(Dataset[dict[str, int]]):
    """A data set without content: one item for every optimiser step."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"tick": index}
