"""Every endpoint through a real gateway, driven by the official Python SDK, by its sync and its async client alike."""

import base64
import inspect
from collections.abc import AsyncIterable, Callable, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from app.simulator.replies import MODELS, speech
from tests.support import Server, eventually

TOKENS = 5
HELLO = [{"role": "user", "content": "hello"}]
PNG = ("a.png", b"\x89PNG\r\n\x1a\n and so on", "image/png")
WAV = ("a.wav", speech(), "audio/wav")
Call = Callable[[Any], Any]


class Sdk:
    """One of the two clients. `await sdk(call)` is what `call(client)` gives, awaited where it has to be."""

    def __init__(self, client: OpenAI | AsyncOpenAI) -> None:
        self.client = client

    async def __call__(self, call: Call) -> Any:
        made = call(self.client)
        return await made if inspect.isawaitable(made) else made

    async def items(self, call: Call) -> list[Any]:
        """Everything in a stream or a page."""
        made = await self(call)
        return [one async for one in made] if isinstance(made, AsyncIterable) else list(made)

    async def live_bytes(self, call: Call) -> bytes:
        """The body of a reply made `with_streaming_response`."""
        made = call(self.client)
        if isinstance(self.client, AsyncOpenAI):
            async with made as reply:
                return b"".join([piece async for piece in reply.iter_bytes()])
        with made as reply:
            return b"".join(reply.iter_bytes())

    async def failure(self, call: Call) -> openai.APIError:
        """The exception that the call ends in, during its stream if it has one."""
        with pytest.raises(openai.APIError) as caught:
            await self.items(call)
        return caught.value


@pytest.fixture(params=["sync", "async"])
def sdk(request: pytest.FixtureRequest, client: OpenAI, async_client: AsyncOpenAI) -> Sdk:
    return Sdk(client if request.param == "sync" else async_client)


@pytest.fixture
def direct(simulator: Server) -> Iterator[OpenAI]:
    """A client of the upstream itself: what it reads is what the gateway has to give."""
    with OpenAI(base_url=simulator.base_url, api_key="any", max_retries=0) as upstream_client:
        yield upstream_client


async def test_the_model_list_has_the_upstreams_models(sdk: Sdk) -> None:
    async def has_all() -> bool:  # what an upstream lists is looked up in the background
        return set(MODELS) <= {model.id for model in await sdk.items(lambda c: c.models.list())}

    await eventually(has_all)
    model = await sdk(lambda c: c.models.retrieve("gpt-4o-mini"))
    assert (model.id, model.object) == ("gpt-4o-mini", "model")


async def test_a_chat_is_answered_n_times(sdk: Sdk) -> None:
    answer = await sdk(lambda c: c.chat.completions.create(model="sim", messages=HELLO, n=3))
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(len(choice.message.content.split()) == TOKENS for choice in answer.choices)
    assert answer.usage.completion_tokens == TOKENS


async def test_a_chat_is_streamed_token_by_token_without_a_usage_nobody_asked_for(sdk: Sdk) -> None:
    chunks = await sdk.items(lambda c: c.chat.completions.create(model="sim", messages=HELLO, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) == TOKENS
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_streamed_chat_ends_in_its_usage_if_that_is_asked_for(sdk: Sdk) -> None:
    options = {"include_usage": True}
    chunks = await sdk.items(
        lambda c: c.chat.completions.create(model="sim", messages=HELLO, stream=True, stream_options=options)
    )
    *others, last = chunks
    assert last.choices == []
    assert last.usage.completion_tokens == TOKENS
    assert all(chunk.choices and chunk.usage is None for chunk in others)


async def test_a_legacy_completion_comes_whole_and_streamed(sdk: Sdk) -> None:
    whole = await sdk(lambda c: c.completions.create(model="sim", prompt="once"))
    assert len(whole.choices[0].text.split()) == TOKENS
    assert whole.usage.completion_tokens == TOKENS
    chunks = await sdk.items(lambda c: c.completions.create(model="sim", prompt="once", stream=True))
    assert len([chunk for chunk in chunks if chunk.choices[0].text]) == TOKENS
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_embeddings_are_the_same_as_base64_and_as_floats(sdk: Sdk) -> None:
    raw = await sdk(lambda c: c.embeddings.with_raw_response.create(model="sim", input=["a", "b"]))
    on_the_wire = raw.http_response.json()["data"][0]["embedding"]
    assert isinstance(on_the_wire, str), "the SDK asks for base64 unless told otherwise"
    floats = await sdk(lambda c: c.embeddings.create(model="sim", input=["a", "b"], encoding_format="float"))
    decoded = raw.parse()
    assert [len(entry.embedding) for entry in floats.data] == [1536, 1536]
    for ours, theirs in zip(decoded.data, floats.data, strict=True):
        assert ours.embedding == pytest.approx(theirs.embedding, abs=1e-6)
    assert decoded.usage == floats.usage


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}], ids=["base64", "float"])
async def test_a_long_list_of_inputs_is_split_and_joined_as_if_it_were_not(
    sdk: Sdk, direct: OpenAI, form: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"model": "sim", "input": [f"text {n}" * (n % 7 + 1) for n in range(4100)], "dimensions": 4}
    raw = await sdk(lambda c: c.embeddings.with_raw_response.create(**asked, **form))
    assert raw.headers["x-sluicegate-attempts"] == "3", "2048 + 2048 + 4 inputs"
    joined, unsplit = raw.parse(), direct.embeddings.create(**asked, **form)
    assert [entry.index for entry in joined.data] == list(range(4100))
    assert [entry.embedding for entry in joined.data] == [entry.embedding for entry in unsplit.data]
    assert joined.usage == unsplit.usage


async def test_one_long_input_of_tokens_is_not_split(sdk: Sdk) -> None:
    raw = await sdk(lambda c: c.embeddings.with_raw_response.create(model="sim", input=list(range(3000)), dimensions=4))
    assert raw.headers["x-sluicegate-attempts"] == "1"
    assert len(raw.parse().data) == 1


async def test_a_response_is_created_retrieved_cancelled_and_deleted(sdk: Sdk) -> None:
    made = await sdk(lambda c: c.responses.create(model="sim", input="its whole life", background=True))
    assert made.status == "completed"
    assert len(made.output_text.split()) == TOKENS
    again = await sdk(lambda c: c.responses.retrieve(made.id))
    assert again.to_dict() == made.to_dict()
    (item,) = await sdk.items(lambda c: c.responses.input_items.list(made.id))
    assert item.content[0].text == "its whole life"
    assert (await sdk(lambda c: c.responses.cancel(made.id))).status == "cancelled"
    await sdk(lambda c: c.responses.delete(made.id))
    assert isinstance(await sdk.failure(lambda c: c.responses.retrieve(made.id)), openai.NotFoundError)


async def test_a_response_is_streamed_and_streamed_again_from_the_store(sdk: Sdk) -> None:
    events = await sdk.items(lambda c: c.responses.create(model="sim", input="in pieces", stream=True))
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(pieces) == TOKENS
    final = events[-1].response
    assert final.output_text == "".join(pieces)
    stored = await sdk.items(lambda c: c.responses.retrieve(final.id, stream=True))
    assert stored[-1].type == "response.completed"
    assert stored[-1].response.output_text == final.output_text


async def test_a_moderation_judges_every_input(sdk: Sdk) -> None:
    one = await sdk(lambda c: c.moderations.create(input="harmless"))
    assert [result.flagged for result in one.results] == [False]
    two = await sdk(lambda c: c.moderations.create(input=["harmless", "as well"], model="omni-moderation-latest"))
    assert [result.categories.hate for result in two.results] == [False, False]


def _is_png(b64: str) -> bool:
    return base64.b64decode(b64).startswith(b"\x89PNG")


async def test_images_are_generated_whole_and_streamed_with_partial_ones(sdk: Sdk) -> None:
    whole = await sdk(lambda c: c.images.generate(model="gpt-image-1", prompt="a mill", n=2))
    assert [_is_png(image.b64_json) for image in whole.data] == [True, True]
    asked = {"model": "gpt-image-1", "prompt": "a mill", "stream": True, "partial_images": 2}
    events = await sdk.items(lambda c: c.images.generate(**asked))
    kinds = ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.type for event in events] == kinds
    assert all(_is_png(event.b64_json) for event in events)


@pytest.mark.parametrize("image", [PNG, [PNG, PNG]], ids=["one image", "two images"])
async def test_images_are_edited_whole_and_streamed(sdk: Sdk, image: Any) -> None:
    whole = await sdk(lambda c: c.images.edit(model="gpt-image-1", image=image, prompt="greener", n=2))
    assert [_is_png(one.b64_json) for one in whole.data] == [True, True]
    events = await sdk.items(lambda c: c.images.edit(model="gpt-image-1", image=image, prompt="greener", stream=True))
    assert [event.type for event in events] == ["image_edit.completed"]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_an_image_is_varied(sdk: Sdk) -> None:
    varied = await sdk(lambda c: c.images.create_variation(image=PNG, n=2))
    assert [_is_png(one.b64_json) for one in varied.data] == [True, True]


async def test_speech_comes_whole_and_live_with_every_byte(sdk: Sdk) -> None:
    asked = {"model": "tts-1", "voice": "alloy", "input": "hello", "response_format": "wav"}
    whole = await sdk(lambda c: c.audio.speech.create(**asked))
    assert whole.content == speech()
    assert whole.response.headers["content-type"] == "audio/wav"
    assert await sdk.live_bytes(lambda c: c.audio.speech.with_streaming_response.create(**asked)) == speech()


async def test_speech_is_transcribed_as_json_as_text_and_streamed(sdk: Sdk) -> None:
    asked = {"model": "gpt-4o-transcribe", "file": WAV}
    as_json = await sdk(lambda c: c.audio.transcriptions.create(**asked))
    assert len(as_json.text.split()) == TOKENS
    as_text = await sdk(lambda c: c.audio.transcriptions.create(**asked, response_format="text"))
    assert isinstance(as_text, str)
    assert len(as_text.split()) == TOKENS
    *deltas, done = await sdk.items(lambda c: c.audio.transcriptions.create(**asked, stream=True))
    assert [event.type for event in deltas] == ["transcript.text.delta"] * TOKENS
    assert done.type == "transcript.text.done"
    assert done.text == "".join(event.delta for event in deltas)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_speech_is_translated_as_json_and_as_text(sdk: Sdk) -> None:
    as_json = await sdk(lambda c: c.audio.translations.create(model="whisper-1", file=WAV))
    assert len(as_json.text.split()) == TOKENS
    as_text = await sdk(lambda c: c.audio.translations.create(model="whisper-1", file=WAV, response_format="text"))
    assert isinstance(as_text, str)
    assert len(as_text.split()) == TOKENS


SAME: dict[str, Call] = {
    "chat": lambda c: c.chat.completions.create(model="sim", messages=HELLO),
    "streamed chat": lambda c: c.chat.completions.create(model="sim", messages=HELLO, stream=True),
    "completion": lambda c: c.completions.create(model="sim", prompt="once"),
    "streamed completion": lambda c: c.completions.create(model="sim", prompt="once", stream=True),
    "response": lambda c: c.responses.create(model="sim", input="same"),
    "streamed response": lambda c: c.responses.create(model="sim", input="same", stream=True),
    "moderation": lambda c: c.moderations.create(input="same"),
    "streamed image": lambda c: c.images.generate(prompt="same", stream=True, partial_images=1),
}


@pytest.mark.parametrize("name", SAME)
async def test_what_is_read_through_the_gateway_is_what_the_upstream_says(sdk: Sdk, direct: OpenAI, name: str) -> None:
    def plain(read: list[Any]) -> list[Any]:
        return [one.to_dict() if hasattr(one, "to_dict") else one for one in read]

    through, truth = await sdk.items(SAME[name]), await Sdk(direct).items(SAME[name])
    assert plain(through) == plain(truth)
    assert through


async def test_an_unknown_model_is_a_not_found_error_that_names_the_parameter(sdk: Sdk) -> None:
    error = await sdk.failure(lambda c: c.models.retrieve("no-such-model"))
    assert isinstance(error, openai.NotFoundError)
    assert (error.type, error.code, error.param) == ("not_found_error", "model_not_found", "model")


async def test_the_upstreams_own_not_found_error_keeps_its_code(sdk: Sdk) -> None:
    error = await sdk.failure(lambda c: c.chat.completions.create(model="sim-status=404", messages=HELLO))
    assert isinstance(error, openai.NotFoundError)
    assert (error.type, error.code) == ("invalid_request_error", "model_not_found")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_request_without_a_model_is_a_bad_request_error_that_names_it(sdk: Sdk, stream: bool) -> None:
    error = await sdk.failure(lambda c: c.chat.completions.create(model="", messages=HELLO, stream=stream))
    assert isinstance(error, openai.BadRequestError)
    assert (error.type, error.param) == ("invalid_request_error", "model")
    assert error.request_id


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_upstream_that_stays_at_its_limit_is_a_rate_limit_error_after_three_tries(
    sdk: Sdk, stream: bool
) -> None:
    model = "sim-status=429-after=0"
    error = await sdk.failure(lambda c: c.chat.completions.create(model=model, messages=HELLO, stream=stream))
    assert isinstance(error, openai.RateLimitError)
    assert error.code == "rate_limit_exceeded"
    assert error.response.headers["x-sluicegate-attempts"] == "3"


async def test_a_spent_quota_is_a_rate_limit_error_at_the_first_try(sdk: Sdk) -> None:
    error = await sdk.failure(lambda c: c.embeddings.create(model="sim-quota=1", input="a"))
    assert isinstance(error, openai.RateLimitError)
    assert error.code == "insufficient_quota"
    assert error.response.headers["x-sluicegate-attempts"] == "1"


async def test_a_stream_that_is_cut_raises_in_the_middle_of_it(sdk: Sdk) -> None:
    error = await sdk.failure(lambda c: c.chat.completions.create(model="sim-cut=2", messages=HELLO, stream=True))
    assert not isinstance(error, openai.APIStatusError | openai.APIConnectionError)
    assert (error.type, error.code) == ("upstream_error", "upstream_cut")
