"""What a transformers model does besides answering: threads, files, Trainer, embeddings, pickles, devices."""

import copy
import gc
import io
import threading
import weakref

import pytest
import torch
from accelerate import cpu_offload
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from support import BACKBONE, VIDEO_ENCODER, perturb, tiny_config, tiny_model, video_inputs
from transformers import DynamicCache, GenerationConfig, StaticCache, Trainer, TrainingArguments

from gazeqwen import adapter_files_gazeqwen
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.positions_gazeqwen import next_positions

LOOK = [[0.2, 0.3, 1.0, 1.0], [0.8, 0.6, 1.6, 0.5]]
GRIDS = [(2, 2, 2)]
EXACT = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def toy_model(lora: bool = False, **kwargs) -> GazeQwenForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"latent_dim": 16, "num_latents": 8, **kwargs}
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER), **sizes)
    if lora:
        model.add_lora(rank=2)
    return perturb(model)


def without_gaze(inputs: dict) -> dict:
    gaze = ("scanpaths", "scanpath_mask", "has_scanpath", "video_encoder_pixel_values", "step_spans_s")
    return {name: value for name, value in inputs.items() if name not in gaze}


# ---------------------------------------------------------------- calls beside and within each other
def in_threads(calls: list) -> list:
    """Return what the calls return, each in a thread of its own, all begun at the same moment."""
    answers, barrier = [None] * len(calls), threading.Barrier(len(calls))

    def run(index: int) -> None:
        barrier.wait()
        answers[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_threads_answer_as_each_alone():
    """Forward and generate of prompts with and without gaze, LoRA on and off, some within `gaze_disabled`."""
    model = tiny_model(lora=True)
    looks = [LOOK, None, [[0.9, 0.1, 0.5, 1.0]], []]
    prompts = [video_inputs([(2, 2, 2 + index % 2)], [look], seed=index) for index, look in enumerate(looks)]

    def base(inputs):
        with model.gaze_disabled():
            return logits(model, inputs)

    calls = [lambda inputs=inputs: logits(model, inputs) for inputs in prompts]
    calls += [lambda inputs=inputs: model.generate(**inputs, **EXACT) for inputs in prompts]
    calls += [lambda inputs=inputs: base(inputs) for inputs in prompts]
    alone = [call() for call in calls]
    assert not torch.equal(alone[0], alone[8])
    for _ in range(2):
        for together, expected in zip(in_threads(calls), alone, strict=True):
            torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)


def test_a_call_within_a_call_leaves_the_outer_one_its_gaze():
    """The outer call has a prompt without gaze besides, for which LoRA is to stay off."""
    model, inputs = tiny_model(lora=True), video_inputs(GRIDS * 2, [LOOK, None])
    expected, other = logits(model, inputs), video_inputs(GRIDS, [LOOK], seed=3)
    inner = []

    def call_within(layer, args):
        if not inner:
            inner.append(None)
            inner[0] = logits(model, other)

    handle = model.backbone.model.language_model.layers[0].self_attn.q_proj.register_forward_pre_hook(call_within)
    found = logits(model, inputs)
    handle.remove()
    assert torch.equal(found, expected) and torch.equal(inner[0], logits(model, other))


def test_assisted_decoding_by_the_model_itself():
    model, inputs = tiny_model(lora=True), video_inputs(GRIDS, [LOOK])
    expected = model.generate(**inputs, **EXACT)
    assert not torch.equal(model.generate(**without_gaze(inputs), **EXACT), expected)
    assert torch.equal(model.generate(**inputs, **EXACT, assistant_model=model), expected)


@pytest.mark.parametrize("lora", [False, True])
def test_copies_and_pickles_answer_alike(lora):
    model, inputs = tiny_model(lora=lora), video_inputs(GRIDS, [LOOK])
    expected, file = logits(model, inputs), io.BytesIO()
    assert torch.equal(logits(copy.deepcopy(model), inputs), expected)
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(logits(torch.load(file, weights_only=False), inputs), expected)


def test_nothing_keeps_a_deleted_model_alive():
    model = tiny_model(lora=True)
    model.generate(**video_inputs(GRIDS, [LOOK]), **EXACT)
    seen = weakref.ref(model.backbone.lm_head.weight)
    del model
    gc.collect()
    assert seen() is None


# ---------------------------------------------------------------- decoding by hand
@pytest.mark.parametrize("lora", [False, True])
def test_a_decode_loop_by_hand_equals_generate_and_a_second_turn_the_whole(lora):
    """Only the first call has the gaze inputs; then single tokens, on the cache of forward or of generate."""
    model, inputs = tiny_model(lora=lora), video_inputs(GRIDS, [LOOK])
    model.backbone.double()
    question = torch.tensor([[7, 8, 9]])

    def next_token(output) -> torch.Tensor:
        allowed = output.logits[:, -1:].clone()
        allowed[..., 2] = -torch.inf  # the end, which `min_new_tokens` forbids
        return allowed.argmax(-1)

    with torch.no_grad():
        output = model(**inputs, past_key_values=DynamicCache(), use_cache=True)
        answer = [next_token(output)]
        while len(answer) < 5:
            output = model(input_ids=answer[-1], past_key_values=output.past_key_values)
            answer.append(next_token(output))
        generated = model.generate(**inputs, **EXACT, return_dict_in_generate=True)
        assert torch.equal(torch.cat(answer, dim=1), generated.sequences[:, -5:])
        whole = torch.cat([generated.sequences, question], dim=1)
        padded = {
            **inputs,
            "input_ids": whole,
            "attention_mask": torch.ones_like(whole),
            "mm_token_type_ids": 2 * (whole == model.backbone.config.video_token_id).int(),
        }
        expected = logits(model, padded)[:, -4:]
        turn = torch.cat([answer[-1], question], dim=1)
        for cache in (output.past_key_values, generated.past_key_values):
            found = model(input_ids=turn, past_key_values=cache).logits
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_decoding_compiles_as_one_graph_with_a_static_cache():
    """After the prompt, whose vision tower the plain Qwen2.5-VL cannot compile as one graph either."""
    config = tiny_config(injection_layers=[0])
    text = config.backbone_config.text_config
    text.num_hidden_layers, text.layer_types = 1, text.layer_types[:1]  # of which tracing takes long
    torch.manual_seed(0)
    model = GazeQwenForConditionalGeneration(config).eval()
    model.add_lora(rank=2)
    perturb(model)
    inputs = video_inputs(GRIDS, [LOOK])
    length = inputs["input_ids"].shape[1]

    def decode(forward, **prompt) -> torch.Tensor:
        cache = StaticCache(config=text, max_cache_len=length + 4)
        with torch.no_grad():
            model(**prompt, past_key_values=cache)
            following = next_positions(cache, length, 1).view(1, 1, 1).expand(3, 1, 1)
            steps = [
                forward(input_ids=torch.tensor([[5 + i]]), position_ids=following + i, past_key_values=cache).logits
                for i in range(3)
            ]
        return torch.cat(steps)

    expected = decode(model, **inputs)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    torch.testing.assert_close(decode(compiled, **inputs), expected, atol=1e-5, rtol=0)
    plain = without_gaze(inputs)
    torch.testing.assert_close(decode(compiled, **plain), decode(model, **plain), atol=1e-5, rtol=0)
    assert (decode(model, **plain) - expected).abs().max() > 1e-3


def test_embeddings_without_ids_where_there_is_no_gaze():
    model, ids = tiny_model(lora=True), torch.randint(3, 90, (2, 6))
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(logits(model, {"inputs_embeds": embeds}), logits(model, {"input_ids": ids}))
    assert torch.equal(model.generate(inputs_embeds=embeds, **EXACT), model.generate(ids, **EXACT)[:, 6:])
    with pytest.raises(ValueError, match="scanpaths need input_ids"):
        model(inputs_embeds=embeds, scanpaths=torch.rand(1, 1, 4))


def test_a_training_batch_without_gaze_gives_zero_gradients():
    for lora in (False, True):
        model = tiny_model(lora=lora).train()
        inputs = video_inputs(GRIDS, [None])
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        assert torch.equal(loss, model.eval()(**inputs, labels=inputs["input_ids"]).loss)
        assert all(not value.grad.any() for value in model.trained_parameters().values())


# ---------------------------------------------------------------- files
@pytest.mark.parametrize("how", [{}, {"save_original_format": False}, "device map"])
def test_every_tensor_is_written(how, tmp_path):
    model = toy_model(lora=True)
    if how == "device map":
        model.hf_device_map, how = {"": "cpu"}, {}
    model.save_pretrained(tmp_path, **how)
    stored = load_file(tmp_path / "model.safetensors")
    own = {f"resampler.{name}": value for name, value in model.resampler.state_dict().items()}
    assert stored.keys() == own.keys() and all(torch.equal(stored[name], own[name]) for name in own)
    assert not list(tmp_path.rglob(".*"))


def test_a_file_that_is_not_whole_replaces_nothing(tmp_path, monkeypatch):
    from gazeqwen import adapter_files_gazeqwen as files

    model = toy_model()
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    save = files.save_file
    monkeypatch.setattr(files, "save_file", lambda tensors, *args, **kwargs: save({}, *args, **kwargs))
    with pytest.raises(OSError, match=r"model.safetensors: got 0 tensors, expected \d+"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before and not list(tmp_path.glob(".*"))


def test_offloaded_tensors_are_not_saved(tmp_path):
    model = toy_model()
    cpu_offload(model.resampler)
    with pytest.raises(ValueError, match="resampler.* is on the meta device, expected its values"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_state_dict_that_accelerate_hands_over_is_saved(tmp_path):
    model = toy_model(lora=True)
    other = {name: value + 1 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=other)
    again = GazeQwenForConditionalGeneration.from_pretrained(tmp_path)
    for name in model.trained_parameters():
        assert torch.equal(again.state_dict()[name], other[name]), name


def test_other_processes_write_nothing(tmp_path):
    model = toy_model(lora=True)
    model.save_pretrained(tmp_path / "new", is_main_process=False)
    assert not (tmp_path / "new").exists()
    model.save_pretrained(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    perturb(model).save_pretrained(tmp_path, is_main_process=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_subfolder_variant_and_loading_info(tmp_path):
    model = toy_model(lora=True)
    model.save_pretrained(tmp_path / "sub", variant="fp32")
    files = {path.name for path in (tmp_path / "sub").rglob("*.safetensors")}
    assert files == {"model.fp32.safetensors", "adapter_model.fp32.safetensors"}
    again, info = GazeQwenForConditionalGeneration.from_pretrained(
        tmp_path, subfolder="sub", variant="fp32", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, value in model.trained_parameters().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_tensors_in_place_of_files_are_refused(tmp_path):
    model = toy_model()
    model.save_pretrained(tmp_path)
    for source in (None, tmp_path):
        with pytest.raises(ValueError, match="expected the folder or id of an adapter and no state_dict"):
            GazeQwenForConditionalGeneration.from_pretrained(
                source, config=model.config, state_dict=model.state_dict()
            )


def test_an_assigned_generation_config_is_used_and_saved(tmp_path):
    model = toy_model()
    model.generation_config = GenerationConfig(max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert model.generate(torch.tensor([[5, 6]])).shape == (1, 5)
    model.save_pretrained(tmp_path)
    assert GazeQwenForConditionalGeneration.from_pretrained(tmp_path).generation_config.max_new_tokens == 3


# ---------------------------------------------------------------- LoRA
@pytest.mark.parametrize("method", ["add_adapter", "load_adapter", "set_adapter", "disable_adapters"])
def test_transformers_adapters_are_refused(method):
    arguments = () if method == "disable_adapters" else (LoraConfig(target_modules=["q_proj"]),)
    with pytest.raises(NotImplementedError, match="one LoRA, its own: see add_lora"):
        getattr(tiny_model(), method)(*arguments)


def test_lora_on_an_offloaded_base_is_refused():
    model = tiny_model()
    cpu_offload(model.backbone)
    with pytest.raises(ValueError, match="layers.0.self_attn.q_proj is offloaded, expected it on a device"):
        model.add_lora()


@pytest.mark.parametrize("lora", [False, True])
def test_trainer_restores_all_that_is_trained_or_refuses(lora, tmp_path):
    model = toy_model(lora=lora)
    ids = torch.randint(3, 90, (4, 6), generator=torch.Generator().manual_seed(0)).tolist()
    data = Dataset.from_dict({"input_ids": ids, "labels": ids})
    settings = {"per_device_train_batch_size": 2, "report_to": [], "save_steps": 1, "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path), max_steps=2, disable_tqdm=True, **settings)
    Trainer(model, arguments, train_dataset=data).train()
    expected = {name: value.clone() for name, value in model.trained_parameters().items()}
    perturb(model)
    resume = Trainer(model, arguments, train_dataset=data).train
    if lora:
        with pytest.raises(ValueError, match=r"lack LoRA's.*from_pretrained\(checkpoint\)"):
            resume(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    else:
        resume(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert all(torch.equal(value, expected[name]) for name, value in model.trained_parameters().items())


@pytest.mark.parametrize("lora", [False, True])
def test_trainer_loads_its_best_model_or_refuses_and_the_checkpoint_holds_all_of_it(lora, tmp_path):
    model = toy_model(lora=lora)
    ids = torch.randint(3, 90, (4, 6), generator=torch.Generator().manual_seed(0)).tolist()
    data, best = Dataset.from_dict({"input_ids": ids, "labels": ids}), {}
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1, "report_to": []}
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        load_best_model_at_end=True,
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )

    class SecondIsBest(Trainer):
        def evaluate(self, *args, **kwargs):
            if self.state.global_step == 2:
                best.update({name: value.clone() for name, value in self.model.trained_parameters().items()})
            else:
                perturb(self.model)  # as worse steps would
            metrics = {"eval_loss": abs(self.state.global_step - 2.0)}
            self.log(metrics)
            return metrics

    train = SecondIsBest(model, arguments, train_dataset=data, eval_dataset=data).train
    if lora:
        with pytest.raises(ValueError, match=r"lack LoRA's.*from_pretrained\(checkpoint\)"):
            train()
        model = GazeQwenForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-2")
    else:
        train()
    assert best and all(torch.equal(value, best[name]) for name, value in model.trained_parameters().items())


def test_an_interrupted_write_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    adapter_files_gazeqwen.write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})

    def interrupted(*_, **__):
        assert len(list(tmp_path.iterdir())) == 2  # the new one is there
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter_files_gazeqwen, "safe_open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adapter_files_gazeqwen.write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert not load_file(tmp_path / "a.safetensors")["x"].any()


# ---------------------------------------------------------------- parts
def test_a_tuple_in_place_of_an_output():
    inputs = video_inputs(GRIDS, [LOOK])
    for lora in (False, True):
        model = tiny_model(lora=lora)
        expected = model(**inputs)
        assert torch.equal(model(**inputs, return_dict=False)[0], expected.logits)
        model.config.return_dict = False
        loss, output, cache = model(**inputs, labels=inputs["input_ids"])[:3]
        assert loss.shape == () and torch.equal(output, expected.logits)
        assert next_positions(cache, output.shape[1], 1) == next_positions(
            expected.past_key_values, output.shape[1], 1
        )


def test_gradient_checkpointing_of_the_config_reaches_the_base_model():
    config = tiny_config()
    config.gradient_checkpointing = True
    model = GazeQwenForConditionalGeneration(config)
    assert all(layer.gradient_checkpointing for layer in model.backbone.model.language_model.layers)


def test_embeddings_and_decoder_are_the_base_models():
    model = tiny_model()
    embeddings, head = torch.nn.Embedding(100, 32), torch.nn.Linear(32, 100, bias=False)
    model.set_input_embeddings(embeddings)
    model.set_output_embeddings(head)
    assert model.backbone.get_input_embeddings() is model.get_input_embeddings() is embeddings
    assert model.backbone.lm_head is model.get_output_embeddings() is head
    assert model.get_decoder() is model.backbone.model.language_model


def test_the_base_models_config_is_one_also_where_it_is_loaded(tmp_path):
    """What is set in the model's config is heeded by the base model, which is loaded with a config of its own."""
    toy_model().save_pretrained(tmp_path)
    for model in (toy_model(), GazeQwenForConditionalGeneration.from_pretrained(tmp_path), tiny_model()):
        ids = torch.tensor([[5, 6]])
        assert model(ids).hidden_states is None
        model.config.text_config.output_hidden_states = True
        assert len(model(ids).hidden_states) == 1 + model.config.text_config.num_hidden_layers


def test_attention_of_the_config_reaches_the_base_model(tmp_path):
    config = tiny_config()
    config._attn_implementation = "eager"
    assert config.text_config._attn_implementation == "eager"
    model = GazeQwenForConditionalGeneration(config)
    assert model.backbone.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    assert model.backbone.model.language_model.config._attn_implementation == "sdpa"
    config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="does not support an attention implementation through.*flex"):
        GazeQwenForConditionalGeneration(config)
    toy_model().save_pretrained(tmp_path)
    loaded = GazeQwenForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.config._attn_implementation == loaded.backbone.config._attn_implementation == "eager"
